"""Means of adapters."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.adapter import adapter_options, save_adapter, stages_of
from models.load import Offer, load_offers
from models.memory.slots import Slots
from models.mix import main
from models.weights.checkpoint import load_checkpoint


def taught(tiny_model: Path, path: Path, number: float, **options: object) -> Path:
    """An adapter of slots whose look is a number everywhere."""
    known = {"importance": "learned", "listens": 1, "heads": ((0, 1), (1, 0)), **options}
    [loaded] = load_offers([Offer(str(tiny_model), "slots", known)]).values()
    memory = loaded.decoder.memory
    assert isinstance(memory, Slots)
    assert memory.look is not None
    for parameter in memory.look.parameters():
        parameter.data.fill_(number)
    made = {"stages": [{"command": "the first"}, {"command": path.stem}]}
    save_adapter(path, loaded.decoder, "slots", load_checkpoint(str(tiny_model)).fingerprint, made)
    return path


def mixed(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["mix", *map(str, arguments)])
    main()


def test_a_mean_is_weighed_and_says_how_it_was_made(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (taught(tiny_model, tmp_path / f"{n}.safetensors", n) for n in (1, 5))
    out = tmp_path / "mean.safetensors"
    mixed(monkeypatch, f"{one}=0.25", f"{other}=0.75", "--recent", 1, "--out", out)
    tensors = load_file(out)
    for name, expected in {"up": 4.0, "gain": 4.0, "offset": 4.5, "steepness": 5.0}.items():
        assert torch.equal(tensors[f"memory.look.{name}"], torch.full_like(tensors[f"memory.look.{name}"], expected))
    stages = [stage["command"] for stage in stages_of(out)]
    assert stages[:3] == ["the first", "1", "5"]
    assert stages[3].startswith("palimpsest-server mix ")
    [loaded] = load_offers([Offer(str(tiny_model), "slots", adapter=out)]).values()
    assert loaded.decoder.memory.state_dict()["look.gain"].unique().item() == 4


def test_what_was_taught_in_another_window_fits_and_room_is_that_of_the_first(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fingerprint = load_checkpoint(str(tiny_model)).fingerprint
    paths = []
    for entries, window in ((64, 32), (32, 128)):
        options = {"window": window, "segment": 16, "compression": "conv", "rate": 2, "entries": entries}
        [loaded] = load_offers([Offer(str(tiny_model), "compressive", options)]).values()
        paths.append(tmp_path / f"{entries}.safetensors")
        save_adapter(paths[-1], loaded.decoder, "compressive", fingerprint)
    out = tmp_path / "mean.safetensors"
    mixed(monkeypatch, f"{paths[0]}=0.5", f"{paths[1]}=0.5", "--out", out)
    assert adapter_options(out, "compressive", fingerprint)["entries"] == 64


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["{one}=0.5", "{other}=0.75"], "sum up to 1"),
        (["{one}"], "FILE=WEIGHT"),
        (["{one}=0.5", "{unlike}=0.5"], "not of the same kind"),
        (["missing.safetensors=1"], "cannot read"),
        (["{plain}=1"], "is no adapter of the format"),
    ],
)
def test_what_cannot_be_mixed_is_refused(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], expected: str
) -> None:
    paths = {name: taught(tiny_model, tmp_path / f"{name}.safetensors", 1) for name in ("one", "other")}
    paths["unlike"] = taught(tiny_model, tmp_path / "unlike.safetensors", 1, listens=2)
    paths["plain"] = tmp_path / "plain.safetensors"
    save_file({"memory.gain": torch.ones(1)}, paths["plain"])
    out = tmp_path / "out.safetensors"
    with pytest.raises(SystemExit, match=expected):
        mixed(monkeypatch, *(text.format(**paths) for text in given), "--out", out)
    assert not out.exists()
