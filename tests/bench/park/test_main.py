"""The whole measurement with a tiny model on a real Redis."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench.park.__main__ import main


@pytest.mark.usefixtures("small_settings")
def test_states_are_parked_resumed_and_written_down(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    book = tmp_path / "book.txt"
    book.write_text("ba ke lo mi nu ra se ti vo zu. " * 40, encoding="utf-8")
    out, states = tmp_path / "results" / "park.json", tmp_path / "states"
    common = ["--model", str(tiny_model), "--lengths", "1024", "512", "--book", str(book), "--states", str(states)]
    arguments = [*common, "--repeats", "5", "--threads", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["bench.park", *arguments, "--only-states"])
    main()
    assert not out.exists()
    kept = sorted(path.name for path in states.iterdir())
    assert len(kept) == 2

    monkeypatch.setattr(sys, "argv", ["bench.park", *arguments])
    main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result == json.loads(out.read_text(encoding="utf-8"))
    assert [row["tokens"] for row in result["rows"]] == [512, 1024]
    short, long = result["rows"]
    assert short["state_bytes"] == long["state_bytes"], "a state weighs the same at any length"
    for row in result["rows"]:
        assert row["cycles"] == 5
        assert row["llama"] is None
        # Two snapshots and little else.
        assert 2 * row["sealed_bytes"] <= row["redis_bytes"] < 3 * row["sealed_bytes"] + 10_000
    assert sorted(path.name for path in states.iterdir()) == kept


def test_lengths_and_repeats_that_say_nothing_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["--repeats", "4"], ["--lengths", "511"]):
        monkeypatch.setattr(sys, "argv", ["bench.park", *arguments])
        with pytest.raises(SystemExit):
            main()
        assert "at least" in capsys.readouterr().err
