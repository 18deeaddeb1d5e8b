"""Training through the memory: segments in, gradients back through every fold."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from models.adapt.checkpoint import read_checkpoint, write_checkpoint
from models.adapt.curriculum import Curriculum
from models.adapt.optimizer import build_optimizer, warm_up
from models.adapt.settings import TrainSettings
from models.adapt.tasks.base import Batch, Task
from models.adapt.tasks.retrieval import Haystack
from models.errors import ConfigError
from models.memory.strength import Marked
from models.state import MemoryState
from models.transformer import Decoder
from models.unrolled import UnrolledState

_AHEAD_FOR = 20
"""Steps that begin with the same haystack in memory; reading it costs about as much as one of them."""


@dataclass(frozen=True)
class Progress:
    """Where a training stands. `loss` is in nats an asked token; `seconds` count over all resumed runs."""

    step: int
    segments: int
    loss: float
    accuracy: float
    seconds: float
    done: bool
    """Whether the longest sequences are mastered."""


class Trainer:
    """Teaches one decoder one task. The same seed and settings give the same model on the same machine.

    What asks for gradients in the decoder is trained, be it all or a memory alone. `base` is what batches that imitate are
    compared with, `haystack` what is read ahead where the settings want that. With a `checkpoint` path a run goes on from
    there, if the file exists, and saves itself every `save_every` steps and at the end.
    """

    def __init__(
        self,
        decoder: Decoder,
        task: Task,
        settings: TrainSettings,
        checkpoint: Path | None = None,
        save_every: int = 200,
        base: Decoder | None = None,
        haystack: Haystack | None = None,
    ) -> None:
        if settings.ahead and haystack is None:
            raise ConfigError("to read ahead a training needs a haystack")
        self._decoder, self._task, self._settings, self._base = decoder, task, settings, base
        self._haystack = haystack
        self._checkpoint, self._save_every = checkpoint, save_every
        self._optimizer = build_optimizer(decoder, settings)
        self._generator = torch.Generator().manual_seed(settings.seed)
        self._curriculum = Curriculum(settings)
        self._carried: UnrolledState | None = None
        self._begun: dict[str, MemoryState] = {}
        self._before = 0.0
        self._began = time.monotonic()
        self.progress = Progress(0, self._curriculum.segments, float("nan"), 0.0, 0.0, False)

    def run(self, say: Callable[[Progress], None] | None = None) -> Progress:
        """Train to the end; `say` hears of every step. Raises `CheckpointError` for a checkpoint that is not this run's."""
        if self._checkpoint is not None and self._checkpoint.exists():
            self._resume(self._checkpoint)
        self._began = time.monotonic()
        while not self._finished():
            self.step()
            if say is not None:
                say(self.progress)
            if self.progress.step % self._save_every == 0:
                self._save()
        self._save()
        return self.progress

    def step(self) -> Progress:
        """One batch and one step of the optimizer."""
        settings, number = self._settings, self.progress.step
        warm_up(self._optimizer, settings, number)
        if settings.ahead and number % _AHEAD_FOR == 0:
            self._begin()
        longest = self._curriculum.segments
        segments = self._curriculum.draw(self._generator)
        length = segments * self._decoder.memory.config.segment
        if settings.ragged:
            missing = torch.randint(self._decoder.memory.config.segment, (), generator=self._generator)
            length = max(length - int(missing), self._task.shortest)
        batch = self._task.batch(self._generator, settings.batch, length).to(self._decoder.device)
        loss, accuracy = self._learn(batch, *self._start(imitates=bool(batch.imitate)))
        trained = [weight for group in self._optimizer.param_groups for weight in group["params"]]
        torch.nn.utils.clip_grad_norm_(trained, settings.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if segments == longest and batch.graded:
            self._curriculum.note(accuracy)
        self.progress = Progress(
            step=number + 1,
            segments=self._curriculum.segments,
            loss=loss,
            accuracy=self._curriculum.accuracy,
            seconds=self._before + time.monotonic() - self._began,
            done=self._curriculum.done,
        )
        return self.progress

    def _finished(self) -> bool:
        progress, settings = self.progress, self._settings
        return progress.done or progress.step >= settings.steps or progress.seconds >= settings.seconds

    def _begin(self) -> None:
        """Read the haystack that the next steps begin behind."""
        settings, segment = self._settings, self._decoder.memory.config.segment
        assert self._haystack is not None
        source = random.Random(int(torch.randint(2**62, (), generator=self._generator)))
        tokens = torch.tensor([self._haystack(source, settings.ahead * segment)], device=self._decoder.device)
        with torch.no_grad():
            for who, decoder in self._readers().items():
                self._begun[who] = decoder.run(tokens, decoder.empty_state())[1]

    def _readers(self) -> dict[str, Decoder]:
        """Who reads what the steps begin behind: the model that learns, and what it is compared with."""
        return {"learning": self._decoder} | ({} if self._base is None else {"base": self._base})

    def _start(self, imitates: bool) -> tuple[UnrolledState, MemoryState | None]:
        """Where the sequences of a step begin, and where the base model does if it is to be imitated."""
        batch, begun = self._settings.batch, self._begun
        base = self._base if imitates else None
        passed = float(torch.rand((), generator=self._generator)) < self._settings.carry
        if passed and self._carried is not None:
            return self._carried, None if base is None else base.empty_state(batch)
        example = None
        if base is not None:
            example = begun["base"].repeat(batch) if begun else base.empty_state(batch)
        if begun:
            return UnrolledState.repeated(begun["learning"], batch), example
        return UnrolledState.start(self._decoder.spec(), batch, self._decoder.device), example

    def _learn(self, batch: Batch, state: UnrolledState, example: MemoryState | None = None) -> tuple[float, float]:
        """Add up the gradients of one batch: mean loss and accuracy of what is asked."""
        memory = self._decoder.memory
        memory.losses = []
        if batch.marked is not None:
            questions = None
            if batch.answers is not None:  # where something is asked, but nothing that was said before: plain text
                said = batch.answers.any(dim=1, keepdim=True)
                questions = batch.asked.cumsum(dim=1) * (batch.asked & said)
            memory.marked = Marked(batch.marked, state.read("position"), batch.answers, questions)
        batch = self._read_ahead(batch, state, example)
        asked, total, right = int(batch.asked.sum()), 0.0, 0
        for part in _parts(batch, self._settings.truncate * memory.config.segment):
            with torch.set_grad_enabled(bool(part.asked.any())):  # nothing can be learned where nothing is asked
                hidden, _ = self._decoder.run(part.tokens, state)
                chosen, targets = self._decoder.read_out(hidden[part.asked]), part.targets[part.asked]
                loss = F.cross_entropy(chosen, targets, reduction="sum") / asked
                whole, memory.losses = sum(memory.losses, loss), []
                if example is not None:
                    whole = whole + batch.imitate / asked * self._divergence(part, example, chosen)
            if len(targets):
                whole.backward()
                total += float(loss.detach())
                right += int((chosen.argmax(dim=-1) == targets).sum())
            state = state.detached()
        memory.losses = memory.marked = None
        self._carried = state if self._settings.carry else None
        return total, right / asked

    def _read_ahead(self, batch: Batch, state: UnrolledState, example: MemoryState | None) -> Batch:
        """What is left of a batch when all has been read that the memory alone learns from."""
        settings, length = self._settings, batch.tokens.shape[1]
        ahead = length - settings.reach * self._decoder.memory.config.segment
        if not settings.reach or ahead <= 0:
            return batch
        with torch.no_grad():
            self._decoder.memory_learns = True
            self._decoder.run(batch.tokens[:, :ahead], state)
            self._decoder.memory_learns = False
            if example is not None:
                assert self._base is not None
                self._base.run(batch.tokens[:, :ahead], example)
        return replace(
            batch, tokens=batch.tokens[:, ahead:], targets=batch.targets[:, ahead:], marked=None, answers=None
        )

    def _divergence(self, part: Batch, example: MemoryState, logits: Tensor) -> Tensor:
        """KL of the base model's distributions from ours, logits (n, V), summed over what is asked; reads the part on."""
        assert self._base is not None
        with torch.no_grad():
            hidden, _ = self._base.run(part.tokens, example)
            wanted = self._base.read_out(hidden[part.asked]).log_softmax(dim=-1)
        return F.kl_div(logits.log_softmax(dim=-1), wanted, reduction="sum", log_target=True)

    def _save(self) -> None:
        if self._checkpoint is None:
            return
        progress = self.progress
        counts = {"step": progress.step, "loss": progress.loss, "seconds": progress.seconds}
        carried = {} if self._carried is None else self._carried.tensors()
        write_checkpoint(
            self._checkpoint,
            self._decoder,
            self._optimizer,
            {
                **self._identity(),
                "counts": counts,
                "curriculum": self._curriculum.save(),
                "generator": self._generator.get_state(),
                "carried": carried,
                "begun": {who: begun.tensors() for who, begun in self._begun.items()},
            },
        )

    def _identity(self) -> dict[str, str]:
        """What the same training has in common over all its runs: not how long each of them may take."""
        settings = replace(self._settings, steps=TrainSettings.steps, seconds=TrainSettings.seconds)
        return {"settings": repr(settings), "task": repr(self._task)}

    def _resume(self, path: Path) -> None:
        saved = read_checkpoint(path, self._decoder, self._optimizer, self._identity())
        self._curriculum.load(saved["curriculum"])
        self._generator.set_state(saved["generator"])
        self._before = saved["counts"]["seconds"]
        if saved["carried"]:
            self._carried = UnrolledState.start(self._decoder.spec(), self._settings.batch, self._decoder.device)
            for name, tensor in saved["carried"].items():
                self._carried.write(name, tensor)
        self._begun = {who: MemoryState(tensors) for who, tensors in saved["begun"].items()}
        self.progress = Progress(
            step=saved["counts"]["step"],
            segments=self._curriculum.segments,
            loss=saved["counts"]["loss"],
            accuracy=self._curriculum.accuracy,
            seconds=self._before,
            done=self._curriculum.done,
        )


def _parts(batch: Batch, size: int) -> Iterator[Batch]:
    """The batch in pieces of at most `size` tokens; whole for 0."""
    if not size:
        yield batch
        return
    pieces: Iterator[tuple[Tensor, Tensor]] = zip(
        batch.tokens.split(size, dim=1), batch.targets.split(size, dim=1), strict=True
    )
    for tokens, targets in pieces:
        yield Batch(tokens, targets, batch.imitate, batch.graded)
