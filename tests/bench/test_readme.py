"""The README's figures are those that were measured."""

from __future__ import annotations

from bench.readme import MEMORY, README, measured, measured_engine, measured_presses, with_measured, with_presses


def test_the_tables_of_the_readme_are_the_measured_ones() -> None:
    readme = README.read_text(encoding="utf-8")
    assert with_measured(readme, measured(), measured_engine()) == readme


def test_the_presses_of_the_documents_are_the_measured_ones() -> None:
    memory = MEMORY.read_text(encoding="utf-8")
    assert with_presses(memory, measured_presses()) == memory
    assert with_presses(memory, measured_presses().replace("%", "1%")) != memory


def test_of_presses_the_readme_has_the_best_at_each_length() -> None:
    lines = [line.split(" | ") for line in measured().splitlines() if "kvpress" in line]
    assert sorted({line[1] for line in lines}) == sorted(line[1] for line in lines)
    assert len(measured_presses().splitlines()) > len(lines) + 3


def test_a_changed_figure_changes_the_readme() -> None:
    readme = README.read_text(encoding="utf-8")
    assert with_measured(readme, measured().replace("%", "1%"), measured_engine()) != readme
    assert with_measured(readme, measured(), measured_engine().replace("ms", "s")) != readme
