"""What a memory has learned, in a file and back; what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from models.adapter import packaged_adapter, save_adapter
from models.errors import ConfigError
from models.load import LoadedModel, Offer, load_offers
from models.memory.continuous import ContinuousConfig
from models.memory.feedback import FeedbackConfig
from models.memory.infini import InfiniConfig
from models.memory.memorizing import MemorizingConfig
from models.weights.checkpoint import Checkpoint
from tests.models.sessions import build, open_memory, random_tokens, read


def trained(checkpoint: Checkpoint, path: Path, model: str | None = None, **options: object) -> InfiniConfig:
    """Write an adapter of a memory whose gates are open."""
    config = InfiniConfig(**{"window": 32, "segment": 16, "layers": (1, 3), **options})  # type: ignore[arg-type]
    decoder = build(checkpoint, config)
    open_memory(decoder.memory)
    save_adapter(path, decoder, "infini", model or checkpoint.fingerprint)
    return config


def loaded(tiny_model: Path, adapter: Path | None, memory: str = "infini", **options: object) -> LoadedModel:
    offer = Offer(str(tiny_model), memory, {"window": 32, "segment": 16, **options}, adapter=adapter)
    return load_offers([offer], dtype=torch.float32)[str(tiny_model), memory]


def test_a_model_with_an_adapter_computes_as_the_one_that_was_trained(
    tiny_model: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config = trained(checkpoint, tmp_path / "a.safetensors", rule="linear")
    served = loaded(tiny_model, tmp_path / "a.safetensors")
    assert served.decoder.memory.config == config  # the rule and the layers came from the file
    original = build(checkpoint, config)
    open_memory(original.memory)
    tokens = random_tokens(original, 100)
    assert torch.equal(read(original, tokens)[0], read(served.decoder, tokens)[0])
    assert not any(parameter.requires_grad for parameter in served.decoder.parameters())


def test_what_was_learned_is_part_of_what_a_saved_state_must_match(
    tiny_model: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    trained(checkpoint, tmp_path / "a.safetensors")
    shut = loaded(tiny_model, None, layers=[1, 3])
    assert loaded(tiny_model, tmp_path / "a.safetensors").kind.memory != shut.kind.memory


def test_an_adapter_of_another_model_or_mechanism_or_none_at_all_is_refused(
    tiny_model: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    other, good, none, text = (tmp_path / name for name in ("other", "good", "none", "text"))
    trained(checkpoint, other, model="another")
    trained(checkpoint, good)
    save_file({"gate": torch.zeros(1)}, none)
    text.write_text("no tensors", encoding="utf-8")
    with pytest.raises(ConfigError, match="is for the model another"):
        loaded(tiny_model, other)
    with pytest.raises(ConfigError, match="is for the mechanism infini and not for memorizing"):
        loaded(tiny_model, good, "memorizing")
    with pytest.raises(ConfigError, match="is no adapter"):
        loaded(tiny_model, none)
    for missing in (text, tmp_path / "missing"):
        with pytest.raises(ConfigError, match="cannot read the adapter"):
            loaded(tiny_model, missing)


def test_settings_that_the_parameters_do_not_fit_are_refused(
    tiny_model: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    trained(checkpoint, tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match="does not fit the memory's settings"):
        loaded(tiny_model, tmp_path / "a.safetensors", layers=[0, 1, 2])


def test_the_package_has_one_only_for_its_model_and_for_settings_that_agree(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.adapter.resources.files", lambda _: tmp_path)
    fingerprint = checkpoint.fingerprint
    assert packaged_adapter("infini", fingerprint, {}) is None
    path = tmp_path / "adapters" / f"infini-{fingerprint[:12]}.safetensors"
    trained(checkpoint, path, rule="linear")
    assert packaged_adapter("infini", fingerprint, {}) == path
    assert packaged_adapter("infini", fingerprint, {"window": 64, "segment": 32, "rule": "linear"}) == path
    assert packaged_adapter("infini", fingerprint, {"layers": [1, 3]}) == path
    assert packaged_adapter("infini", fingerprint, {"rule": "delta"}) is None
    assert packaged_adapter("feedback", fingerprint, {}) is None
    assert packaged_adapter("infini", "another" + fingerprint, {}) is None


def test_how_much_a_memory_holds_may_be_chosen_anew(
    tiny_model: Path, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries are as many as it was taught with, unless others are asked for: nothing learned depends on them."""
    monkeypatch.setattr("models.adapter.resources.files", lambda _: tmp_path)
    path = tmp_path / "adapters" / f"memorizing-{checkpoint.fingerprint[:12]}.safetensors"
    config = MemorizingConfig(window=32, segment=16, entries=64, top_k=8, gate="learned")
    save_adapter(path, build(checkpoint, config), "memorizing", checkpoint.fingerprint)
    others: list[tuple[dict[str, int], int]] = [({}, 64), ({"entries": 256, "top_k": 4}, 256)]
    for options, entries in others:
        memory = loaded(tiny_model, None, "memorizing", **options).decoder.memory.config
        assert isinstance(memory, MemorizingConfig)
        assert (memory.entries, memory.gate) == (entries, "learned")


def test_segments_are_as_long_as_taught_where_a_memory_looks_at_them_whole(
    tiny_model: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    for mechanism, config, segment in (
        ("continuous", ContinuousConfig(window=32, segment=16, basis=32), 16),
        ("feedback", FeedbackConfig(window=32, segment=16, tokens=4), 16),
        ("infini", InfiniConfig(window=32, segment=16), 256),
    ):
        save_adapter(path, build(checkpoint, config), mechanism, checkpoint.fingerprint)
        offers = [Offer(str(tiny_model), mechanism, asked, adapter=path) for asked in ({}, {"segment": 64})]
        served = [load_offers([offer])[offer.model, mechanism].decoder.memory.config for offer in offers]
        assert [(one.window, one.segment) for one in served] == [(512, segment), (512, 64)]


def test_how_it_was_made_is_in_the_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    decoder = build(checkpoint, InfiniConfig(window=32, segment=16))
    save_adapter(tmp_path / "a", decoder, "infini", checkpoint.fingerprint, {"steps": 3})
    with safe_open(tmp_path / "a", framework="pt") as file:
        assert json.loads(file.metadata()["made"]) == {"steps": 3}
