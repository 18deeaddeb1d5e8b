"""Calibration files: found for the right model, refused with a way out for any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.calibration import Calibration, read_calibration, read_heads, read_layers
from models.errors import ConfigError

CALIBRATION = Calibration(
    model="tiny", fingerprint="f" * 32, heads=((2, 1, 0.9), (0, 0, 0.5), (1, 1, 0.25)), keep=2, measured={"seed": "1"}
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    CALIBRATION.write(path)
    assert read_calibration(path.read_text(encoding="utf-8"), "file") == CALIBRATION
    assert read_heads("f" * 32, path) == ((2, 1), (0, 0))


def test_the_best_heads_are_chosen() -> None:
    assert CALIBRATION.chosen == ((2, 1), (0, 0))


def test_a_model_nobody_measured_is_told_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"calibrate MODEL --out FILE.*PALIMPSEST_MEMORY=window"):
        read_heads("0" * 32)


def test_another_models_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    CALIBRATION.write(path)
    with pytest.raises(ConfigError, match=r"heads\.json was measured on tiny"):
        read_heads("0" * 32, path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ConfigError, match="cannot read the calibration file"):
            read_heads("f" * 32, path)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"format": None},
        {"heads": None},
        {"heads": [[0, 1]]},
        {"heads": [[0, 1, "much"]]},
        {"heads": [[float("inf"), 1, 0.5]]},
        {"keep": "two"},
        {"keep": 1.5},
        {"keep": -1},
        {"keep": 0},
        {"heads": []},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_broken_file_is_refused_by_name(changes: dict[str, Any]) -> None:
    fields = {
        "format": 1,
        "model": "tiny",
        "fingerprint": "f",
        "heads": [[2, 1, 0.9], [0, 0, 0.5]],
        "keep": 2,
        "measured": {},
    }
    assert read_calibration(json.dumps(fields), "heads.json").keep == 2
    with pytest.raises(ConfigError, match=r"heads\.json"):
        read_calibration(json.dumps({**fields, **changes}), "heads.json")


@pytest.mark.parametrize("missing", ["format", "model", "fingerprint", "heads", "keep", "measured"])
def test_a_file_that_lacks_something_is_refused(missing: str) -> None:
    fields = {"format": 1, "model": "m", "fingerprint": "f", "heads": [[0, 0, 1.0]], "keep": 1, "measured": {}}
    del fields[missing]
    with pytest.raises(ConfigError, match=r"heads\.json"):
        read_calibration(json.dumps(fields), "heads.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"null", b'"format"', b"\xff\xfe\x00", b"\0" * 50])
def test_a_file_of_anything_else_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "heads.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"heads\.json"):
        read_heads("f" * 32, path)


def test_whole_layer_memories_lie_where_a_calibrated_model_retrieves(tmp_path: Path) -> None:
    heads = tuple((layer, 0, 1 / (1 + layer)) for layer in (9, 2, 7, 2, 5, 3, 4, 1, 8, 6, 0))
    path = tmp_path / "calibration.json"
    Calibration("model", "f" * 32, heads, 4, {}).write(path)
    assert read_layers("f" * 32, path) == (1, 2, 3, 4, 5, 7, 8, 9)
    assert read_layers("f" * 32) == ()
