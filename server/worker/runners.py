"""Every pair that a worker serves, each with its runner. Pairs of one model share its weights."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

import torch

from models import native
from models.errors import ModelsError
from models.load import DTYPES, Offer, load_offers
from models.quantized import Precision
from server.errors import ModelNotServed
from server.messages import Ready
from server.pairs import Pair
from server.settings import Settings
from server.worker.runner import Feed, Runner, Sample


class NoRoom(Exception):
    """The memory that the settings allow, or that there is, does not hold the states; the text says what to change."""


LOADING_ERRORS = (ModelsError, NoRoom)
"""What loading raises when models and settings do not fit: restarting would not help."""


class Runners:
    """Runners by pair, in the order of the settings. Empty before `load`."""

    def __init__(self, settings: Settings, worker: int) -> None:
        self._settings, self._worker = settings, worker
        self._device = _device(settings.device[worker])
        self._quantize: Precision | None = settings.dtype if settings.dtype in ("int8", "int4") else None
        self._dtype = DTYPES["float32" if settings.dtype == "float32" else "bfloat16"]
        self._by_pair: dict[Pair, Runner] = {}
        self.rows = 0
        """Sessions of each pair that are resident at once."""

    def bind_thread(self) -> None:
        """Set the number of torch threads for the calling thread, which is to be the compute thread."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        share = max(1, cores // len(self._settings.device))
        torch.set_num_threads(self._settings.threads or share)

    @staticmethod
    def bind_mover() -> None:
        """The same for the thread that encodes and decodes states: it must not compete with steps for their threads."""
        torch.set_num_threads(1)

    def load(self) -> None:
        """Read the models, and lay out the slabs: one byte budget for all pairs, as many rows for each. Raises one of
        `LOADING_ERRORS`."""
        pairs = self._settings.pairs()
        loaded = load_offers(
            [Offer(*served.pair, served.options, served.calibration, served.adapter) for served in pairs],
            dtype=self._dtype,
            device=self._device,
            quantize=self._quantize,
        )
        runners = {served.pair: Runner(served.pair, loaded[served.pair], self._device) for served in pairs}
        self.rows = self._rows(list(runners.values()))
        for runner in runners.values():
            self._lay_out(runner)
        self._by_pair = runners

    def _rows(self, runners: Sequence[Runner]) -> int:
        """How many of each pair the budget holds, at most as many as are wanted."""
        budget, wanted = int(self._settings.resident_mib * 2**20), self._settings.resident_sessions
        # What a runner keeps beside the rows of sessions is part of it.
        beside = sum(runner.spare_rows * runner.offered.state_bytes for runner in runners)
        each = sum(runner.offered.state_bytes for runner in runners)
        fit = (budget - beside) // each
        if fit < 1:
            raise NoRoom(
                f"PALIMPSEST_RESIDENT_MIB={self._settings.resident_mib:g} does not hold one session of each pair that is served: "
                f"that takes {_mib(each + beside)}; give more, or offer fewer pairs"
            )
        return fit if wanted is None else min(fit, wanted)

    def _lay_out(self, runner: Runner) -> None:
        try:
            runner.lay_out(self.rows)
        except RuntimeError as error:  # torch has no narrower kind for all its devices
            raise NoRoom(
                f"{self._device} has no room for {self.rows} sessions of {runner.offered.pair}, "
                f"{_mib(self.rows * runner.offered.state_bytes)}; lower PALIMPSEST_RESIDENT_MIB or offer fewer pairs"
            ) from error

    @property
    def places(self) -> int:
        """Sessions of all pairs that are resident at once."""
        return self.rows * len(self._by_pair)

    def describe(self) -> Ready:
        """What this worker serves."""
        return Ready(
            worker=self._worker,
            offers=tuple(runner.offered for runner in self._by_pair.values()),
            places=self.places,
            device=str(self._device),
            dtype=self._quantize or str(self._dtype).removeprefix("torch."),
            kernels="native" if native.available(self._device, self._dtype) else "torch",
        )

    @property
    def default(self) -> Runner:
        """That of sessions which name no pair."""
        return next(iter(self._by_pair.values()))

    def __getitem__(self, pair: Pair) -> Runner:
        """The runner of a pair that is served."""
        return self._by_pair[pair]

    def __contains__(self, pair: Pair) -> bool:
        return pair in self._by_pair

    def not_served(self, pair: Pair) -> ModelNotServed:
        """The refusal of another pair."""
        return ModelNotServed(f"{pair} is not served here; served are {', '.join(map(str, self._by_pair))}")

    def run(self, feeds: Mapping[Pair, Sequence[Feed]]) -> Mapping[str, Sample]:
        """One step: the sessions of a pair run together, one pair after another. Returns the sampled tokens by key."""
        samples: dict[str, Sample] = {}
        for pair, its in feeds.items():
            samples |= self[pair].run(its)
        return samples


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _mib(count: int) -> str:
    return f"{math.ceil(count / 2**20)} MiB"
