"""A model, a memory and a precision put together, and what is refused on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.calibration import Calibration
from models.codec import decode_state, encode_state
from models.errors import CheckpointError, ConfigError, StateError
from models.load import Offer, assemble, load_model, load_offers, memory_config
from models.memory.slots import SlotsConfig
from models.tokenizer import Tokenizer
from models.weights.checkpoint import Checkpoint
from tests.models.sessions import slots_config, window_config

SMALL = {"window": 32, "segment": 16, "sinks": 4}


def test_a_model_is_loaded_with_the_memory_that_was_asked_for(tiny_model: Path, checkpoint: Checkpoint) -> None:
    loaded = load_model(str(tiny_model), memory="window", options=SMALL, dtype=torch.bfloat16)
    assert loaded.decoder.memory.config == window_config()
    assert loaded.decoder.dtype == torch.bfloat16
    assert loaded.fingerprint == loaded.kind.model == checkpoint.fingerprint
    assert loaded.parameters == sum(tensor.numel() for tensor in checkpoint.tensors.values())
    token = torch.tensor([loaded.tokenizer.encode("Bake lomi.")])
    logits, state = loaded.decoder(token, loaded.decoder.empty_state())
    assert logits.shape == (1, checkpoint.config.vocab_size)
    assert state.positions == [token.shape[1]]


def test_slots_take_their_heads_from_the_calibration_file(
    tiny_model: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path = tmp_path / "heads.json"
    Calibration("tiny", checkpoint.fingerprint, ((3, 1, 0.9), (1, 0, 0.8), (0, 0, 0.1)), 2, {}).write(path)
    loaded = load_model(str(tiny_model), options={**SMALL, "slots": 24}, calibration=path)
    config = loaded.decoder.memory.config
    assert isinstance(config, SlotsConfig)
    assert (config.heads, config.slots, config.window) == (((3, 1), (1, 0)), 24, 32)


def test_slots_learn_from_the_tokenizer_where_sentences_end(checkpoint: Checkpoint) -> None:
    heads = {"heads": [[1, 0]]}
    config = memory_config(checkpoint, "slots", heads)
    assert isinstance(config, SlotsConfig)
    assert config.ends == Tokenizer.of(checkpoint.tokenizer).sentence_ends != ()
    chosen = memory_config(checkpoint, "slots", {**heads, "ends": [3]})
    assert isinstance(chosen, SlotsConfig)
    assert chosen.ends == (3,)


def test_slots_without_a_calibration_say_what_to_do(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="calibrate MODEL"):
        load_model(str(tiny_model))


def test_a_calibration_of_another_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    Calibration("some-other", "0" * 32, ((0, 0, 1.0),), 1, {}).write(path)
    with pytest.raises(ConfigError, match="measured on some-other"):
        load_model(str(tiny_model), calibration=path)


def test_a_calibration_naming_heads_the_model_lacks_is_refused(
    tiny_model: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path = tmp_path / "heads.json"
    Calibration("tiny", checkpoint.fingerprint, ((4, 0, 1.0),), 1, {}).write(path)
    with pytest.raises(ConfigError, match="no key/value head 0 in layer 4"):
        load_model(str(tiny_model), calibration=path)


def test_an_unknown_memory_is_told_the_known_ones(checkpoint: Checkpoint) -> None:
    with pytest.raises(ConfigError, match=r"'elephant'.*slots, transformer_xl, window"):
        memory_config(checkpoint, "elephant", {})
    with pytest.raises(ConfigError, match="slots, transformer_xl, window"):
        assemble(checkpoint, window_config(), "elephant")


def test_settings_that_the_memory_does_not_have_are_named(checkpoint: Checkpoint) -> None:
    with pytest.raises(ConfigError, match=r"'window' has no setting colour, slots"):
        memory_config(checkpoint, "window", {"window": 32, "slots": 5, "colour": 1})


def test_settings_that_cannot_work_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="multiple of the segment"):
        memory_config(checkpoint, "window", {"window": 33, "segment": 16})


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        load_model(str(tmp_path / "none"), memory="window")


def test_a_state_fits_only_the_kind_of_memory_that_made_it(checkpoint: Checkpoint) -> None:
    window = assemble(checkpoint, window_config(), "window")
    saved = encode_state(window.decoder.empty_state(), window.kind)
    assert decode_state(saved, window.kind).positions == [0]
    for config, memory in ((window_config(sinks=3), "window"), (slots_config(), "slots")):
        with pytest.raises(StateError, match="another memory configuration"):
            decode_state(saved, assemble(checkpoint, config, memory).kind)


def test_pairs_of_one_model_share_its_weights(tiny_model: Path) -> None:
    both = load_offers([Offer(str(tiny_model), name, SMALL) for name in ("window", "infini")], dtype=torch.float32)
    window, infini = (both[str(tiny_model), name].decoder for name in ("window", "infini"))
    assert window.weights is infini.weights
