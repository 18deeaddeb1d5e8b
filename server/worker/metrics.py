"""What a worker measures of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector

from server.messages import Measured
from server.metrics import StoreErrors, families, show

_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_BETWEEN_TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_MOVING = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class WorkerMetrics:
    """Counters and histograms that the engine feeds. Use from the event loop's thread."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.store_errors = StoreErrors(registry)
        self._batch = Histogram(
            "palimpsest_batch_sessions", "Sessions computed together in one step.", buckets=_BATCHES, registry=registry
        )
        self._prefill = Counter(
            "palimpsest_prefill_tokens",
            "Tokens read that somebody gave.",
            registry=registry,
        )
        self._decode = Counter("palimpsest_decode_tokens", "Tokens sampled.", registry=registry)
        self._computing = Counter("palimpsest_compute_seconds", "Time spent in steps.", registry=registry)
        self._between = Histogram(
            "palimpsest_inter_token_latency_seconds",
            "From one sampled token of a generation to the next.",
            buckets=_BETWEEN_TOKENS,
            registry=registry,
        )
        self._snapshots = Histogram(
            "palimpsest_snapshot_seconds", "Writing a session's state to the store.", buckets=_MOVING, registry=registry
        )
        self._restores = Histogram(
            "palimpsest_restore_seconds",
            "Making a session resident from the store.",
            buckets=_MOVING,
            registry=registry,
        )

    def gauge(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        """Something that is asked for when somebody looks."""
        show(self._registry, name, documentation, value)

    def stepped(self, sessions: int, prefilled: int, decoded: int, seconds: float) -> None:
        """A step is over: so many sessions, tokens given and tokens sampled in it."""
        self._batch.observe(sessions)
        self._prefill.inc(prefilled)
        self._decode.inc(decoded)
        self._computing.inc(seconds)

    def followed(self, seconds: float) -> None:
        """A token came so long after the one before it."""
        self._between.observe(seconds)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Around the writing of one; what fails is not counted."""
        began = perf_counter()
        yield
        self._snapshots.observe(perf_counter() - began)

    @contextmanager
    def restore(self) -> Iterator[None]:
        """Around the reading of one; what fails is not counted."""
        began = perf_counter()
        yield
        self._restores.observe(perf_counter() - began)

    def measured(self) -> Measured:
        """All figures, as they are now."""
        return Measured(families=families(self._registry))
