"""Training learns, can be interrupted, and touches only what asks for it."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.adapt.evaluate import Trials, accuracy
from models.adapt.settings import TrainSettings
from models.adapt.small import SmallModel, build_small
from models.adapt.tasks.base import Batch
from models.adapt.tasks.passkey import Passkey
from models.adapt.train import Progress, Trainer
from models.errors import CheckpointError, ConfigError
from models.layers import Layer
from models.memory.base import Evicted
from models.state import MemoryState
from models.transformer import Decoder
from models.unrolled import UnrolledState

TASK = Passkey(digits=1, alphabet=4, filler=2)
SETTINGS = TrainSettings(first_segments=2, last_segments=3, batch=8, steps=4, warmup=1)


def decoder(memory: str = "infini", **options: object) -> Decoder:
    ring = {"window": 8, "segment": 4, "sinks": 0}
    if memory == "infini":
        options = {"rule": "gated_delta", "gate_init": 0.0, **options}
    return build_small(SmallModel(hidden=32, inner=32), TASK.vocab_size, memory, {**ring, **options})


def weights(model: Decoder) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def assert_same(one: Decoder, other: Decoder) -> None:
    others = weights(other)
    for name, weight in weights(one).items():
        assert torch.equal(weight, others[name]), name


def test_it_learns_a_key_within_the_window() -> None:
    model = decoder("window")
    heard: list[Progress] = []
    settings = TrainSettings(first_segments=2, last_segments=2, steps=300, learning_rate=5e-3, warmup=10)
    progress = Trainer(model, TASK, settings).run(heard.append)
    assert progress.done
    assert progress == heard[-1]
    assert [one.step for one in heard] == list(range(1, progress.step + 1))
    assert accuracy(model, TASK, Trials(length=8, count=64)) > 0.9


def test_the_same_seed_gives_the_same_model_and_another_one_another() -> None:
    models = [decoder() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        Trainer(model, TASK, replace(SETTINGS, seed=seed)).run()
    assert_same(models[0], models[1])
    assert not torch.equal(models[0].weights.embedding, models[2].weights.embedding)


def fillers(source: random.Random, count: int) -> list[int]:
    """Filler of the task's."""
    return [source.randrange(TASK.alphabet, TASK.alphabet + TASK.filler) for _ in range(count)]


@pytest.mark.parametrize(("carry", "ahead"), [(0.0, 0), (0.7, 0), (0.3, 5)])
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(tmp_path: Path, carry: float, ahead: int) -> None:
    settings = replace(SETTINGS, steps=6, carry=carry, ahead=ahead, advance_at=0.0, patience=1)
    whole, cut = decoder(), decoder()
    Trainer(whole, TASK, settings, haystack=fillers).run()
    path = tmp_path / "run" / "checkpoint.pt"
    stopped = Trainer(cut, TASK, settings, path, save_every=1, haystack=fillers)

    def stop(progress: Progress) -> None:
        if progress.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped.run(stop)
    resumed = decoder()
    progress = Trainer(resumed, TASK, settings, path, haystack=fillers).run()
    assert progress.step == 6
    assert_same(whole, resumed)
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    Trainer(decoder(), TASK, SETTINGS, path).run()
    with pytest.raises(CheckpointError, match="of another training, with the settings"):
        Trainer(decoder(), TASK, replace(SETTINGS, batch=4), path).run()
    with pytest.raises(CheckpointError, match="of another training, with the task"):
        Trainer(decoder(), replace(TASK, depth=0.0), SETTINGS, path).run()
    with pytest.raises(CheckpointError, match="of a model with other weights"):
        Trainer(decoder("window"), TASK, SETTINGS, path).run()


def test_a_checkpoint_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"not what torch writes")
    with pytest.raises(CheckpointError, match="delete it to begin anew"):
        Trainer(decoder(), TASK, SETTINGS, path).run()


def test_only_what_asks_for_gradients_is_trained_and_a_memory_alone_can_be() -> None:
    model = decoder()
    model.weights.requires_grad_(False)
    before = weights(model)
    # Long enough for the key to have been folded away when it is asked for.
    Trainer(model, TASK, replace(SETTINGS, first_segments=6, last_segments=6)).run()
    changed = {name for name, weight in weights(model).items() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if name.startswith("memory.")}


def test_gradients_flow_back_through_folds_unless_cut_off() -> None:
    """What is written is decided in the segments before; a memory's write gate learns from what is read of it later."""
    for truncate, learns in ((0, True), (1, False)):
        model = decoder()
        task = replace(TASK, depth=0.0)
        settings = replace(SETTINGS, first_segments=6, last_segments=6, steps=1, truncate=truncate)
        before = weights(model)
        Trainer(model, task, settings).run()
        after = weights(model)
        assert torch.equal(before["memory.write_weight"], after["memory.write_weight"]) is not learns
        assert not torch.equal(before["memory.gate"], after["memory.gate"])


def test_the_budget_in_seconds_ends_a_training() -> None:
    progress = Trainer(decoder(), TASK, replace(SETTINGS, steps=10**6, seconds=1e-6)).run()
    assert progress.step == 1
    assert not progress.done


def test_a_memorys_own_losses_are_learned_from() -> None:
    options = {"compression": "conv", "rate": 2, "entries": 8, "task_gradient": False}
    model = decoder("compressive", **options)
    before = weights(model)
    Trainer(model, TASK, replace(SETTINGS, first_segments=6, last_segments=6, steps=2)).run()
    assert not torch.equal(before["memory.key_kernel"], weights(model)["memory.key_kernel"])
    assert model.memory.losses is None, "serving has no use for them"


def one_step(reach: int, memory: str = "infini", **options: Any) -> tuple[Decoder, Decoder]:
    """A model of one layer before and after a step on sequences of eight segments."""
    ring = {"window": 8, "segment": 4, "sinks": 0}
    small = SmallModel(layers=1, hidden=32, inner=32)
    models = [build_small(small, TASK.vocab_size, memory, {**ring, **options}) for _ in range(2)]
    settings = replace(SETTINGS, first_segments=8, last_segments=8, steps=1, reach=reach)
    Trainer(models[1], replace(TASK, depth=0.0), settings).run()
    return models[0], models[1]


def test_ahead_of_its_reach_the_memory_learns_what_to_write() -> None:
    options: dict[str, Any] = {"rule": "gated_delta", "gate_init": 0.0, "write_init": 0.5}
    _, whole = one_step(0, **options)
    start, near = one_step(3, **options)
    before, after, expected = (dict(model.memory.named_parameters()) for model in (start, near, whole))
    for name in ("write_weight", "write_offset", "decay_offset", "gate"):
        assert not torch.equal(after[name], before[name]), name
        # With one layer nothing that is read ahead changes what is written: the same step, whatever the reach.
        torch.testing.assert_close(after[name], expected[name], rtol=1e-3, atol=1e-6)


def test_ahead_of_its_reach_writing_costs_as_much_as_within() -> None:
    small, ring = SmallModel(layers=1, hidden=32, inner=32), {"window": 8, "segment": 4, "sinks": 0}
    # Nothing is read of a memory that is shut: the price alone has gradients.
    options = {
        **ring,
        "rule": "gated_delta",
        "gate_init": -200.0,
        "decay_init": 0.0,
        "write_init": 0.5,
        "write_cost": 1.0,
    }
    found: list[Tensor] = []
    for reach in (0, 3):
        model = build_small(small, TASK.vocab_size, "infini", options)
        batch = TASK.batch(torch.Generator().manual_seed(0), 8, 32)
        trainer = Trainer(model, TASK, replace(SETTINGS, first_segments=8, last_segments=8, reach=reach))
        trainer._learn(batch, UnrolledState.start(model.spec(), 8))
        slope = model.memory.get_parameter("write_offset").grad
        assert slope is not None
        found.append(slope)
    whole, near = found
    torch.testing.assert_close(near, whole)
    # Six folds of four tokens, two heads, each at strength .5: the slope of a sigmoid there is a quarter.
    torch.testing.assert_close(whole.sum(), torch.tensor(6 * 0.25).to(whole), rtol=0.05, atol=0)


def test_ahead_of_its_reach_the_model_learns_nothing() -> None:
    task = replace(TASK, depth=0.0)
    model = decoder()
    settings = replace(SETTINGS, first_segments=8, last_segments=8, reach=2)
    trainer = Trainer(model, task, settings)
    batch = task.batch(torch.Generator().manual_seed(0), 8, 32)
    state = UnrolledState.start(model.spec(), 8)
    rest = trainer._read_ahead(batch, state, None)
    assert rest.tokens.shape[1] == 8
    assert not state.read("ring_keys").requires_grad
    assert state.read("infini_memory").requires_grad
    assert not model.memory_learns


def test_sequences_begin_behind_what_was_read_ahead() -> None:
    model, base = decoder(), decoder("window")
    settings = replace(SETTINGS, ahead=5)
    trainer = Trainer(model, TASK, settings, base=base, haystack=fillers)
    trainer._begin()
    state, example = trainer._start(imitates=True)
    assert example is not None
    assert state.values().positions == example.positions == [20] * settings.batch
    for started in (state, example):
        keys = started.read("ring_keys", 0)
        assert torch.equal(keys[0], keys[-1])
        assert keys.any()
    assert state.read("infini_memory", 0).any()
    batch = TASK.batch(torch.Generator().manual_seed(0), settings.batch, 12)
    trainer._learn(replace(batch, imitate=1.0), state, example)
    again, beside = trainer._start(imitates=True)  # what a step reads stays its own
    assert beside is not None
    assert again.values().positions == beside.positions == [20] * settings.batch


def test_a_memory_is_told_what_to_write_at_the_positions_where_it_stands() -> None:
    model, told = decoder(), []
    trainer = Trainer(model, TASK, replace(SETTINGS, ahead=5, truncate=1), haystack=fillers)
    trainer._begin()
    batch = TASK.batch(torch.Generator().manual_seed(0), SETTINGS.batch, 12)
    marked = torch.zeros(SETTINGS.batch, 12, dtype=torch.bool)
    marked[0, 6] = True
    fold = model.memory.fold

    def watched(layer: int, state: MemoryState, evicted: Evicted) -> None:
        assert model.memory.marked is not None
        told.append((evicted.starts.tolist(), model.memory.marked.within(evicted.starts, 4).tolist()))
        fold(layer, state, evicted)

    model.memory.fold = watched  # type: ignore[method-assign]
    trainer._learn(replace(batch, marked=marked), *trainer._start(imitates=False))
    assert {starts[0] for starts, _ in told} == {12, 16, 20}
    assert not any(any(said) for _, said in told), "20 to 23 has left the ring, 24 to 27 has not"
    assert model.memory.marked is None
    marked[0, 3] = True
    told.clear()
    trainer._learn(replace(batch, marked=marked), *trainer._start(imitates=False))
    assert {starts[0] for starts, said in told if said[0]} == {20}
    assert not any(any(said[1:]) for _, said in told)


def test_a_memory_is_told_which_token_is_due_where_it_was_said() -> None:
    """The first row asks for something that stands in its text, the others for what nobody said before."""
    model, found = decoder(), []
    trainer = Trainer(model, TASK, SETTINGS)
    batch = TASK.batch(torch.Generator().manual_seed(0), SETTINGS.batch, 12)
    marked = torch.zeros(SETTINGS.batch, 12, dtype=torch.bool)
    marked[0, 1] = True
    fold = model.memory.fold

    def watched(layer: int, state: MemoryState, evicted: Evicted) -> None:
        assert model.memory.marked is not None
        found.append(model.memory.marked.questions)
        fold(layer, state, evicted)

    model.memory.fold = watched  # type: ignore[method-assign]
    trainer._learn(replace(batch, marked=marked, answers=marked.long()), *trainer._start(imitates=False))
    questions = found[0]
    assert questions is not None
    count = int(batch.asked[0].sum())
    assert questions[0][batch.asked[0]].tolist() == list(range(1, count + 1))
    assert int(questions.count_nonzero()) == count
    trainer._learn(replace(batch, marked=marked), *trainer._start(imitates=False))
    assert found[-1] is None


def test_ragged_sequences_end_anywhere_in_their_last_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS, first_segments=4, last_segments=4, ragged=True)
    trainer, lengths = Trainer(decoder(), TASK, settings), set()
    learn = trainer._learn

    def watched(batch: Batch, *others: Any) -> tuple[float, float]:
        lengths.add(batch.tokens.shape[1])
        return learn(batch, *others)

    monkeypatch.setattr(trainer, "_learn", watched)
    for _ in range(24):
        trainer.step()
    segment = trainer._decoder.memory.config.segment
    assert lengths == set(range(3 * segment + 1, 4 * segment + 1))


def test_what_is_learned_and_tried_goes_to_the_models_device(monkeypatch: pytest.MonkeyPatch) -> None:
    model, moved = decoder(), []

    def watched(batch: Batch, device: torch.device) -> Batch:
        moved.append(device)
        return batch

    monkeypatch.setattr(Batch, "to", watched)
    Trainer(model, TASK, replace(SETTINGS, steps=2)).run()
    accuracy(model, TASK, Trials(length=8, count=4))
    assert moved == [model.device] * 3


def test_what_is_read_ahead_has_to_come_from_somewhere() -> None:
    with pytest.raises(ConfigError, match="needs a haystack"):
        Trainer(decoder(), TASK, replace(SETTINGS, ahead=1))
    with pytest.raises(ConfigError, match="ahead of a training must not be negative"):
        replace(SETTINGS, ahead=-1)


def test_reach_and_truncation_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="not both"):
        replace(SETTINGS, reach=1, truncate=1)


@pytest.mark.parametrize("recompute", [False, True])
def test_feed_forward_networks_are_computed_again_only_if_told_to(
    monkeypatch: pytest.MonkeyPatch, recompute: bool
) -> None:
    model, computed = decoder(), 0
    model.recompute = recompute
    plain = Layer.feed_forward

    def counted(layer: Layer, x: Tensor) -> Tensor:
        nonlocal computed
        computed += 1
        return plain(layer, x)

    monkeypatch.setattr(Layer, "feed_forward", counted)
    hidden, _ = model.run(torch.zeros(2, 4, dtype=torch.int64), UnrolledState.start(model.spec(), 2))
    ahead = computed
    assert ahead == model.config.num_layers
    hidden.sum().backward()
    assert computed - ahead == (ahead if recompute else 0)
