"""Every pair that a worker serves, each with its runner. Pairs of one model share its weights."""

from __future__ import annotations

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

MODEL_ERRORS = ModelsError
"""What loading raises when models and settings do not fit: restarting would not help."""


class Runners:
    """Runners by pair, in the order of the settings. Empty before `load`."""

    def __init__(self, settings: Settings, worker: int) -> None:
        self._settings, self._worker = settings, worker
        self._device = _device(settings.device[worker])
        self._quantize: Precision | None = settings.dtype if settings.dtype in ("int8", "int4") else None
        self._dtype = DTYPES["float32" if settings.dtype == "float32" else "bfloat16"]
        self._by_pair: dict[Pair, Runner] = {}

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
        """Read the models. Raises one of `MODEL_ERRORS`."""
        pairs = self._settings.pairs()
        loaded = load_offers(
            [Offer(*served.pair, served.options, served.calibration, served.adapter) for served in pairs],
            dtype=self._dtype,
            device=self._device,
            quantize=self._quantize,
        )
        rows = self._settings.resident_sessions
        self._by_pair = {served.pair: Runner(served.pair, loaded[served.pair], self._device, rows) for served in pairs}

    def describe(self) -> Ready:
        """What this worker serves."""
        return Ready(
            worker=self._worker,
            offers=tuple(runner.offered for runner in self._by_pair.values()),
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
