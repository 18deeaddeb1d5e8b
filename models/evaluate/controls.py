"""What a memory is measured beside: the same weights without it or with another's, and the base model without any.

Memory off: the ring of the same adapted weights. Shuffled: the ring of the session and the memory of one that read something
else. Window: the base model over a window as wide. Full attention: the base model that sees everything.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from models.adapt.evaluate import without_memory
from models.codec import StateKind
from models.evaluate.evaluation import SHORT
from models.evaluate.plan import FULL_LENGTH, Plan
from models.evaluate.reading import CHUNK, ROOM, Reader, full_attention_reader, window_reader
from models.load import LoadedModel
from models.probes import prose
from models.state import MemoryState
from models.transformer import Weights
from models.weights.checkpoint import Checkpoint

_STRANGE = 120_000
"""Characters of prose that another session reads, again and again if it must."""


class Shuffled(Reader):
    """Answers with the memory of another session, which has read as many tokens of `strange`, and with its own ring.

    They are exchanged just before the question: what the session has read of its own memory may still be in its ring.
    """

    def __init__(self, name: str, model: LoadedModel, strange: Sequence[int]) -> None:
        super().__init__(name, model)
        self._strange = strange
        self._stranger = self.empty()

    def answer(self, state: MemoryState, question: Sequence[int], count: int) -> list[int]:
        """As `Reader.answer`."""
        return super().answer(self.exchanged(state), question, count)

    def exchanged(self, state: MemoryState) -> MemoryState:
        """A copy of `state` with the other's memory."""
        mixed, other = state.clone(), self._other(state.positions[0])
        for name in self.model.decoder.memory.spec():
            mixed.write(name, other.read(name))
        return mixed

    def _other(self, position: int) -> MemoryState:
        """The other session at this position. Read once: the trials of a length end at positions that differ little."""
        if self._stranger.positions[0] > position:
            self._stranger = self.empty()
        read, settled = self._stranger.positions[0], position - CHUNK
        if settled > read:
            self._stranger, read = self.read(self._stranger, self._strange[read:settled]), settled
        return self.read(self._stranger.clone(), self._strange[read:position])


class Contenders:
    """A memory on a model, and the controls that a plan wants."""

    def __init__(self, checkpoint: Checkpoint, weights: Weights, own: Reader, plan: Plan) -> None:
        self._checkpoint, self._weights, self._plan = checkpoint, weights, plan
        self._alike = [own]
        if "memory_off" in plan.controls:
            self._alike.append(memory_off(own))
        if "window" in plan.controls:
            self._alike.append(window_reader(checkpoint, own.model.decoder.memory.config, weights))
        self._shuffled: list[Reader] = []
        if "shuffled" in plan.controls:
            text = own.model.tokenizer.encode(prose(random.Random(f"another {plan.seed}"), _STRANGE))
            strange = list(itertools.islice(itertools.cycle(text), 2 * plan.longest))
            self._shuffled.append(Shuffled(f"{own.name}, shuffled", own.model, strange))

    def answering(self, length: int) -> list[Reader]:
        """Those that can be asked behind `length` tokens."""
        return [*self._alike, *self._shuffled, *self._full(length)]

    def reading(self) -> Iterator[tuple[Reader, list[int]]]:
        """Those whose likelihood can be measured, each with the lengths at which it can; shuffled ones only answer."""
        lengths = list(self._plan.lengths)
        for reader in self._alike:
            yield reader, lengths
        if short := [length for length in lengths if length <= FULL_LENGTH]:
            for reader in self._full(max(short)):
                yield reader, short

    def base(self) -> Reader:
        """The model as it was, over a short text."""
        return full_attention_reader(self._checkpoint, SHORT, self._weights)

    def _full(self, length: int) -> list[Reader]:
        if "full_attention" not in self._plan.controls or length > FULL_LENGTH:
            return []
        return [full_attention_reader(self._checkpoint, length + ROOM, self._weights)]


def memory_off(own: Reader) -> Reader:
    """The same adapted weights over the ring alone."""
    decoder = without_memory(own.model.decoder)
    kind = StateKind(own.model.fingerprint, decoder.memory_fingerprint(), decoder.spec())
    return Reader(f"{own.name}, memory off", replace(own.model, decoder=decoder, kind=kind))
