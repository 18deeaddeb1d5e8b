"""What the package teaches the default model: a passkey far behind the window is found, and the language is not lost."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

import models
from models.adapter import stages_of
from models.evaluate.reading import Reader
from models.evaluate.trials import Trials
from models.load import LoadedModel, Offer, load_offers
from models.probes import prose
from models.weights.hub import DEFAULT_MODEL

pytestmark = pytest.mark.model

FILES = sorted((Path(models.__file__).parent / "adapters").glob("*.safetensors"))
NAMES = [path.name.partition("-")[0] for path in FILES]
LIMIT = 8 << 20


@pytest.fixture(scope="module")
def loaded() -> dict[str, LoadedModel]:
    """The default model with the window alone, and with every memory that has an adapter."""
    pairs = load_offers([Offer(DEFAULT_MODEL, memory) for memory in ("window", *NAMES)])
    return {memory: model for (_, memory), model in pairs.items()}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_it_is_small_and_says_how_it_was_made(path: Path) -> None:
    assert path.stat().st_size <= LIMIT
    stages = stages_of(path)
    mixed = [
        stage for stage in stages if stage["command"].startswith("palimpsest-server mix ")
    ]  # nothing is drawn in it
    taught = [stage for stage in stages if stage not in mixed]
    assert taught
    assert all(
        stage["command"].startswith(("palimpsest-server adapt ", "palimpsest-server calibrate ")) for stage in taught
    )
    assert all(stage["seconds"] > 0 and "seed" in stage for stage in taught)
    curve = path.with_suffix(".csv").read_text(encoding="utf-8").splitlines()
    assert "step" in curve[0].split(",")
    assert len(curve) > 10


@pytest.mark.parametrize("memory", NAMES)
def test_it_finds_a_passkey_far_behind_the_window(loaded: dict[str, LoadedModel], memory: str) -> None:
    trials = Trials(loaded[memory].tokenizer, "A book.")
    # Three of four: another processor rounds bfloat16 otherwise.
    assert sum(trials.passkey(Reader(memory, loaded[memory]), 1_500, 4, depth=0.0)) >= 3
    assert sum(trials.passkey(Reader("window", loaded["window"]), 1_500, 4, depth=0.0)) == 0


@pytest.mark.parametrize("memory", NAMES)
@torch.inference_mode()
def test_within_the_window_the_language_is_not_lost(loaded: dict[str, LoadedModel], memory: str) -> None:
    text = torch.tensor([loaded[memory].tokenizer.encode(prose(random.Random(3), 2_400))[:500]])
    ours, base = (
        loaded[name].decoder(text, loaded[name].decoder.empty_state(), logits="all")[0].log_softmax(dim=-1)
        for name in (memory, "window")
    )
    divergence = torch.nn.functional.kl_div(ours, base, reduction="sum", log_target=True) / text.shape[1]
    # 0.09 on this monotonous prose, 0.02 on a novel. Taught passkeys alone, it lost a whole nat a token of text.
    assert float(divergence) < 0.2
