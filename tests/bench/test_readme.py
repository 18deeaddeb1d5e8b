"""The README's figures are those that were measured."""

from __future__ import annotations

from bench.readme import README, measured, measured_engine, with_measured


def test_the_tables_of_the_readme_are_the_measured_ones() -> None:
    readme = README.read_text(encoding="utf-8")
    assert with_measured(readme, measured(), measured_engine()) == readme


def test_a_changed_figure_changes_the_readme() -> None:
    readme = README.read_text(encoding="utf-8")
    assert with_measured(readme, measured().replace("%", "1%"), measured_engine()) != readme
    assert with_measured(readme, measured(), measured_engine().replace("ms", "s")) != readme
