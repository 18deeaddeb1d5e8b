"""Steps that can be recorded: they ask the device for nothing, and do what other steps do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from models import native
from models.recorded import SIZES, RecordedSteps
from models.state import MemoryState
from models.transformer import Decoder
from models.weights.checkpoint import Checkpoint
from tests.models.memories import ROWS, Row, each
from tests.models.sessions import build, open_memory, random_tokens

STILL = {name: row for name, row in ROWS.items() if name.startswith(("window", "slots"))}


def played(step: Callable[[], None]) -> Callable[[], None]:
    """Stands for a graph: it works on the tensors that the step was recorded with."""
    return step


def decoder(checkpoint: Checkpoint, row: Row) -> Decoder:
    model = build(checkpoint, row.config)
    open_memory(model.memory)
    return model


@each(STILL)
@torch.inference_mode()
def test_a_recorded_step_is_a_step(row: Row, checkpoint: Checkpoint) -> None:
    model = decoder(checkpoint, row)
    slab, plain = model.empty_state(6), model.empty_state(5)
    lengths = {4: 130, 0: 3, 2: 60}  # one of them has nothing beyond its ring
    for place, length in lengths.items():
        tokens = torch.tensor([random_tokens(model, length, seed=length)])
        for state in (slab, plain):
            model(tokens, state.select([place]))
    steps, rows = RecordedSteps(model, slab, spare=5, record=played), list(lengths)
    taken = 0
    for token in range(40):
        some = rows[: 1 + token % 3]
        positions = slab.select(some).positions
        expected, _ = model(torch.full((len(some), 1), token), plain.select(some))
        if steps.suits(positions):
            found = steps.step([token] * len(some), some)
            taken += 1
        else:
            assert any((position + 1) % row.config.segment == 0 for position in positions)
            found, _ = model(torch.full((len(some), 1), token), slab.select(some))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert taken > 30
    for name, tensor in plain.select(rows).tensors().items():
        torch.testing.assert_close(slab.select(rows).read(name), tensor, rtol=1e-4, atol=1e-4)
    assert not slab.select([1, 3]).read("position").any()


@each(STILL)
def test_nothing_in_a_step_waits_for_the_device(
    row: Row, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors without numbers stand for those of a device that nobody may ask."""
    for name in ("suits_hear", "suits_beginnings"):  # they are for CPUs, and would look at what is not there
        monkeypatch.setattr(native, name, lambda *_: False)
    model = decoder(checkpoint, row)
    with torch.inference_mode(), FakeTensorMode(allow_non_fake_inputs=True) as fake:
        slab = MemoryState({name: fake.from_tensor(x) for name, x in model.empty_state(4).tensors().items()})
        rows, tokens = torch.zeros(2, dtype=torch.int64), torch.zeros((2, 1), dtype=torch.int64)
        assert model.step(tokens, slab.at(rows)).shape == (2, model.config.vocab_size)
        with pytest.raises(DataDependentOutputException):
            int(slab.read("position")[0])


class Sent(TorchDispatchMode):
    """Notes operations that take an index, or anything else, from the host: such a copy cannot be recorded."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known, self.found = {id(tensor): tensor for tensor in known}, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "aten" and func.name().startswith(("aten::lift_fresh", "aten::scalar_tensor")):
            self.found.append(func.name())
        if func.name().startswith("aten::index"):
            self.found += [str(func) for index in args[1] if index is not None and id(index) not in self.known]
        found = func(*args, **(kwargs or {}))
        self.known |= {id(one): one for one in (found if isinstance(found, list | tuple) else [found])}
        return found


@each(STILL)
@torch.inference_mode()
def test_nothing_in_a_step_is_sent_to_the_device(
    row: Row, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("suits_hear", "suits_beginnings"):
        monkeypatch.setattr(native, name, lambda *_: False)
    model = decoder(checkpoint, row)
    rows, tokens = torch.tensor([2, 0]), torch.zeros((2, 1), dtype=torch.int64)
    slab = model.empty_state(4)
    with Sent([rows, tokens]) as sent:
        model.step(tokens, slab.at(rows))
        assert sent.found == []
        tokens[:, [0]]
        torch.tensor([1])
    assert len(sent.found) == 2


def test_the_next_larger_recording_is_played(checkpoint: Checkpoint) -> None:
    model, sizes = decoder(checkpoint, ROWS["window"]), []

    def counted(step: Callable[[], None]) -> Callable[[], None]:
        sizes.append(step)
        return step

    with torch.inference_mode():
        steps = RecordedSteps(model, model.empty_state(9), spare=8, record=counted)
        for count in (3, 4, 1, 4, 3):
            assert steps.step([1] * count, range(count)).shape == (count, model.config.vocab_size)
    assert len(sizes) == 2
    assert not steps.suits([0] * (SIZES[-1] + 1))
