"""The command that adapts a pretrained model: what it writes is served, what it cannot do it says."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from models.adapter import stages_of
from models.load import LoadedModel, Offer, load_offers

RING = {"window": 32, "segment": 32}
OPTIONS: dict[str, dict[str, Any]] = {
    "infini": {**RING, "rule": "gated_delta", "projections": True, "gate_init": 0.0},
    "feedback": {**RING, "tokens": 4, "gate_init": 0.0, "gated": True, "limit": 4},
    "continuous": {
        **RING,
        "basis": 24,
        "samples": 20,
        "widths": [0.03, 0.06],
        "gate_init": 0.0,
        "density": "gibbs",
        "gated": True,
    },
    "compressive": {**RING, "compression": "conv"},
    "memorizing": {**RING, "entries": 64, "gate": "learned", "gate_init": 0.0},
    "slots": {**RING, "heads": [[0, 0]], "slots": 64},
    "window": RING,
}


def adapt(model: Path, out: Path, memory: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command for a few short steps."""
    few = ("--steps", "3", "--batch", "2", "--first-segments", "5", "--last-segments", "5", "--threads", "1")
    command = (sys.executable, "-m", "models.adapt", str(model), "--memory", memory, "--out", str(out))
    settings = ("--options", json.dumps(OPTIONS[memory]))
    return subprocess.run((*command, *settings, *few, *options), capture_output=True, text=True, check=False)


def served(model: Path, memory: str, adapter: Path | None) -> LoadedModel:
    offer = Offer(str(model), memory, OPTIONS[memory], adapter=adapter)
    return load_offers([offer], dtype=torch.float32)[str(model), memory]


def curve(adapter: Path) -> list[dict[str, str]]:
    with adapter.with_suffix(".csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("memory", OPTIONS)
def test_what_it_writes_is_served_over_the_same_model(tiny_model: Path, tmp_path: Path, memory: str) -> None:
    out = tmp_path / "learned.safetensors"
    done = adapt(tiny_model, out, memory, "--objectives", "passkey=1,text=1", "--ahead", "3")
    assert done.returncode == 0, done.stderr
    changed, plain = served(tiny_model, memory, out), served(tiny_model, memory, None)
    assert changed.kind.memory != plain.kind.memory
    assert changed.kind.spec == plain.kind.spec
    tokens = torch.arange(100)[None]
    ours, theirs = (one.decoder(tokens, one.decoder.empty_state())[0] for one in (changed, plain))
    assert not torch.equal(ours, theirs)
    assert [row["step"] for row in curve(out)] == ["1", "2", "3"]


def test_it_is_tried_on_sequences_of_another_seed(tiny_model: Path, tmp_path: Path) -> None:
    """Each objective on its own, in the steps that are due; trying it out changes nothing of what is learned."""
    tried, plain = tmp_path / "tried.safetensors", tmp_path / "plain.safetensors"
    objectives = ("--objectives", "passkey=1,copy=1", "--first-segments", "10", "--last-segments", "10")
    done = adapt(tiny_model, tried, "infini", *objectives, "--evaluate-every", "2", "--trials", "3")
    assert done.returncode == 0, done.stderr
    assert adapt(tiny_model, plain, "infini", *objectives, "--evaluate-every", "0").returncode == 0
    shown = [(row["passkey_tried"], row["copy_tried"]) for row in curve(tried)]
    assert shown[0] == shown[2] == ("", "")
    assert all(0 <= float(share) <= 1 for share in shown[1])
    assert "step 2, tried: passkey" in done.stderr
    assert "passkey_tried" not in curve(plain)[0]
    one, other = load_file(tried), load_file(plain)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_asides_are_part_of_what_is_read(tiny_model: Path, tmp_path: Path) -> None:
    plain, with_asides = tmp_path / "plain.safetensors", tmp_path / "asides.safetensors"
    for out, options in ((plain, ()), (with_asides, ("--asides", "60"))):
        done = adapt(tiny_model, out, "infini", "--objectives", "text=1", *options)
        assert done.returncode == 0, done.stderr
    assert curve(plain)[0]["loss"] != curve(with_asides)[0]["loss"]


def test_what_is_computed_again_teaches_the_same(tiny_model: Path, tmp_path: Path) -> None:
    kept, again = tmp_path / "kept.safetensors", tmp_path / "again.safetensors"
    for out, options in ((kept, ()), (again, ("--recompute",))):
        assert adapt(tiny_model, out, "infini", "--objectives", "passkey=1,text=1", *options).returncode == 0
    one, other = load_file(kept), load_file(again)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_training_goes_on_from_its_checkpoint_as_if_it_had_not_stopped(tiny_model: Path, tmp_path: Path) -> None:
    whole, parted, saved = tmp_path / "whole.safetensors", tmp_path / "parted.safetensors", tmp_path / "run"
    assert adapt(tiny_model, whole, "infini").returncode == 0
    for steps in ("2", "3"):
        done = adapt(tiny_model, parted, "infini", "--checkpoint", str(saved), "--steps", steps)
        assert done.returncode == 0, done.stderr
    one, other = load_file(whole), load_file(parted)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    assert [row["loss"] for row in curve(whole)] == [row["loss"] for row in curve(parted)]


@pytest.mark.parametrize(
    ("memory", "options", "said"),
    [
        ("infini", ("--objectives", "singing"), "passkey, needle"),
        ("infini", ("--objectives", "passkey=often"), "passkey=2"),
        ("infini", ("--options", '{"rule": "magic"}'), "rule must be"),
        ("infini", ("--options", "rule"), "no JSON"),
        ("infini", ("--rank", "-1"), "rank"),
        ("infini", ("--objectives", "copy"), "longer sequences"),
        ("infini", ("--trials", "0"), "--trials must be at least 1"),
        ("window", ("--rank", "0"), "nothing to learn"),
        ("infini", ("--book", "{short}", "{missing}"), "missing.txt"),
        ("infini", ("--begin-with", "The key is"), "no tokens of its own"),
        ("feedback", ("--begin-with", "The key is", "--start", "{missing}"), "exclude each other"),
        ("infini", ("--ahead", "-1"), "ahead"),
        ("infini", ("--asides", "-1"), "--asides must be"),
    ],
)
def test_what_cannot_work_is_said_in_a_line(
    tiny_model: Path, tmp_path: Path, memory: str, options: tuple[str, ...], said: str
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("A line. Another one.", encoding="utf-8")
    files = {"short": short, "missing": tmp_path / "missing.txt"}
    given = [part.format(**files) if part.startswith(("{short", "{missing")) else part for part in options]
    done = adapt(tiny_model, tmp_path / "out.safetensors", memory, *given)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.safetensors").exists()


def test_it_begins_where_an_adapter_ends(tiny_model: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    assert adapt(tiny_model, first, "infini").returncode == 0
    still = ("--learning-rate", "1e-12", "--gate-learning-rate", "1e-12", "--reach", "3")
    done = adapt(tiny_model, second, "infini", "--start", str(first), *still)
    assert done.returncode == 0, done.stderr
    one, other = load_file(first), load_file(second)
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-6)
    commands = [stage["command"] for stage in stages_of(second)]
    assert [str(path) in command for path, command in zip((first, second), commands, strict=True)] == [True, True]
    assert ["--start" in command for command in commands] == [False, True]
    refused = adapt(tiny_model, second, "infini", "--start", str(first), "--rank", "0")
    assert refused.returncode != 0
    assert "does not fit" in refused.stderr
