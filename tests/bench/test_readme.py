"""The README's figures are those that were measured."""

from __future__ import annotations

from bench.readme import README, measured, with_measured


def test_the_table_of_the_readme_is_the_measured_one() -> None:
    readme = README.read_text(encoding="utf-8")
    assert with_measured(readme, measured()) == readme


def test_a_changed_figure_changes_the_readme() -> None:
    readme = README.read_text(encoding="utf-8")
    assert with_measured(readme, measured().replace("%", "1%")) != readme
