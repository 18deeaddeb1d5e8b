"""States are read once, kept, and never taken for those of another text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from bench.park.histories import Histories, read_on, repeated
from server.worker.runner import Feed, Runner, Sample

TEXT = "ba ke lo mi nu ra se ti vo zu. "


@pytest.fixture
def fed(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each feed had, from now on."""
    counts: list[int] = []
    run = runner.run

    def counting(feeds: Sequence[Feed]) -> Mapping[str, Sample]:
        counts.extend(len(feed.tokens) for feed in feeds)
        return run(feeds)

    monkeypatch.setattr(runner, "run", counting)
    return counts


def _histories(runner: Runner, folder: Path, tokens: Sequence[int] | None = None) -> Histories:
    return Histories(runner, tokens or repeated(runner.reader, TEXT, 1400), folder, lambda _: None)


def test_text_is_repeated_until_there_are_enough_tokens(runner: Runner) -> None:
    once = read_on(runner.reader, TEXT)
    many = repeated(runner.reader, TEXT, 3 * len(once) + 1)
    assert len(many) == 3 * len(once) + 1
    assert many[len(once) :] == [*once, *once, once[0]]


def test_a_state_in_the_folder_is_not_read_again(runner: Runner, tmp_path: Path, fed: list[int]) -> None:
    first = _histories(runner, tmp_path).state(700)
    assert fed == [512, 188]
    assert _histories(runner, tmp_path).state(700) == first
    assert fed == [512, 188]


def test_a_longer_history_goes_on_from_a_shorter_one(runner: Runner, tmp_path: Path, fed: list[int]) -> None:
    whole = _histories(runner, tmp_path / "whole").state(1024)
    fed.clear()
    parts = _histories(runner, tmp_path / "parts")
    parts.state(512)
    assert parts.state(1024) == whole
    assert fed == [512, 512]


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:500] + b"\x00\xff" + data[502:]])
def test_a_damaged_state_is_read_anew(runner: Runner, tmp_path: Path, fed: list[int], damage: object) -> None:
    assert callable(damage)
    first = _histories(runner, tmp_path).state(600)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    fed.clear()
    assert _histories(runner, tmp_path).state(600) == first
    assert sum(fed) == 600
    assert path.read_bytes() == first


def test_another_text_of_the_same_length_has_its_own_state(runner: Runner, tmp_path: Path) -> None:
    first = _histories(runner, tmp_path).state(600)
    other = _histories(runner, tmp_path, repeated(runner.reader, "se ti vo. ", 1400)).state(600)
    assert other != first
    assert len(list(tmp_path.iterdir())) == 2
