"""Finding retrieval heads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch
from safetensors.torch import load_file

from models.adapt import sharpen
from models.adapter import save_adapter, stages_of
from models.calibrate import LENGTH, ProbedDecoder, main
from models.calibration import read_calibration
from models.config import MemoryConfig
from models.load import Offer, load_model, load_offers, weights_of
from models.memory.slots import SlotsConfig
from models.memory.window import Window
from models.transformer import Decoder
from models.weights.checkpoint import Checkpoint, load_checkpoint
from tests.models.sessions import open_memory


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Path) -> Checkpoint:
    return load_checkpoint(str(tiny_model))


def probed(checkpoint: Checkpoint) -> ProbedDecoder:
    config = MemoryConfig(window=64, segment=64, sinks=0)
    return ProbedDecoder(weights_of(checkpoint), Window(checkpoint.config, config, torch.float32))


@torch.inference_mode()
def test_the_mass_on_all_keys_is_one(checkpoint: Checkpoint) -> None:
    decoder = probed(checkpoint)
    decoder.watch(slice(30, 40), slice(0, 40))
    decoder(torch.arange(50, 90)[None], decoder.empty_state())
    torch.testing.assert_close(decoder.mass, torch.ones_like(decoder.mass))


@torch.inference_mode()
def test_no_mass_lies_on_keys_that_come_later(checkpoint: Checkpoint) -> None:
    decoder = probed(checkpoint)
    decoder.watch(slice(10, 20), slice(20, 40))
    decoder(torch.arange(50, 90)[None], decoder.empty_state())
    assert not decoder.mass.any()


@torch.inference_mode()
def test_watching_changes_nothing(checkpoint: Checkpoint) -> None:
    decoder, tokens = probed(checkpoint), torch.arange(50, 90)[None]
    plain_memory = Window(checkpoint.config, MemoryConfig(window=64, segment=64, sinks=0), torch.float32)
    plain = Decoder(weights_of(checkpoint), plain_memory)
    decoder.watch(slice(30, 40), slice(0, 10))
    watched, _ = decoder(tokens, decoder.empty_state())
    expected, _ = plain(tokens, plain.empty_state())
    torch.testing.assert_close(watched, expected, rtol=1e-4, atol=1e-4)


def test_the_command_writes_a_file_that_the_slots_memory_takes(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "heads.json"
    command = [
        sys.executable,
        "-m",
        "models.calibrate",
        str(tiny_model),
        "--out",
        str(out),
        "--probes",
        "2",
        "--heads",
        "3",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found = read_calibration(out.read_text(encoding="utf-8"), out.name)
    assert len(found.heads) == 4 * 2
    assert [score for *_, score in found.heads] == sorted((score for *_, score in found.heads), reverse=True)
    model = load_model(str(tiny_model), calibration=out, dtype=torch.float32, options={"slots": 8})
    config = model.decoder.memory.config
    assert isinstance(config, SlotsConfig)
    assert config.heads == found.chosen
    assert len(found.chosen) == 3


def test_a_book_that_is_too_short_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("Too short.", encoding="utf-8")
    command = [sys.executable, "-m", "models.calibrate", str(tiny_model), "--book", str(book)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path.parent)
    assert done.returncode == 1
    assert str(2 * LENGTH) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little to learn from."""
    few = {
        "STREAMS": 1,
        "PLACES": (500, 900),
        "LEAD": 40,
        "REPEATS": (6,),
        "BEHIND": (0, 2),
    }
    for name, value in few.items():
        monkeypatch.setattr(sharpen, name, value)


def calibrated(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    told = ("--facts", 5, "--needles", 2, "--anew", 2)
    monkeypatch.setattr(sys, "argv", ["calibrate", *map(str, (*arguments, *told))])
    main()


@pytest.mark.usefixtures("short")
def test_the_command_teaches_slots_what_to_keep(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, adapter = tmp_path / "heads.json", tmp_path / "slots.safetensors"
    few = ("--probes", 1, "--heads", 3, "--stretches", 2, "--steps", 10)
    calibrated(monkeypatch, tiny_model, "--out", out, "--adapter", adapter, *few)
    assert adapter.with_suffix(".csv").read_text(encoding="utf-8").startswith("step,sure,nats,seconds\n10,")
    [model] = load_offers([Offer(str(tiny_model), "slots", {"slots": 8}, adapter=adapter)]).values()
    config = model.decoder.memory.config
    assert isinstance(config, SlotsConfig)
    assert (config.importance, config.slots) == ("learned", 8)
    assert config.heads == tuple(sorted(read_calibration(out.read_text(encoding="utf-8"), out.name).chosen))
    assert any(bool(parameter.any()) for parameter in model.decoder.memory.parameters())
    assert len(stages_of(adapter)) == 1


@pytest.mark.usefixtures("short")
def test_the_command_goes_on_from_an_adapter(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"importance": "learned", "listens": 1, "heads": ((0, 1), (1, 0))}
    [taught] = load_offers([Offer(str(tiny_model), "slots", options)]).values()
    open_memory(taught.decoder.memory)
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    made = {"command": "the first", "seed": 0}
    save_adapter(first, taught.decoder, "slots", load_checkpoint(str(tiny_model)).fingerprint, {"stages": [made]})
    calibrated(monkeypatch, tiny_model, "--start", first, "--steps", 1, "--adapter", second)
    assert not list(tmp_path.glob("*.json")), "its heads are known"
    assert [one["command"] for one in stages_of(second)] == ["the first", ANY]
    before, after = load_file(first), load_file(second)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) == name.startswith("memory.importance."), name
    with pytest.raises(SystemExit, match="--adapter"):
        calibrated(monkeypatch, tiny_model, "--start", first)
