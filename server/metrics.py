"""What the HTTP process measures, and how its figures and the workers' become one page for Prometheus.

Names have the prefix `palimpsest_` and the unit as their suffix. Every sample says which process it is from: `http`, `worker-0`, …
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from inspect import iscoroutinefunction
from time import perf_counter
from typing import Any, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector
from prometheus_client.exposition import choose_encoder

from server.errors import StoreUnavailable
from server.messages import Family, GenerationDelta, GenerationEvent, Point
from server.store.base import Store

_REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class StoreErrors:
    """Counts what the store of one process could not do, by the method that was called."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._count = Counter(
            "palimpsest_store_errors",
            "Calls that the store did not answer, or refused.",
            ["operation"],
            registry=registry,
        )

    def counted(self, store: Store) -> Store:
        """The same store, its failures counted."""
        return cast(Store, _Counted(store, self._count))


class _Counted:
    """A store in front of another one."""

    def __init__(self, store: Store, count: Counter) -> None:
        self._store, self._count = store, count

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not iscoroutinefunction(found):
            return found

        async def call(*arguments: Any, **options: Any) -> Any:
            try:
                answer = await found(*arguments, **options)
            except StoreUnavailable:
                self._count.labels(name).inc()
                raise
            # Of many entries each has an outcome of its own.
            if isinstance(answer, (list, tuple)) and (
                failed := sum(isinstance(one, StoreUnavailable) for one in answer)
            ):
                self._count.labels(name).inc(failed)
            return answer

        return call


class ServiceMetrics:
    """Of the HTTP process: requests, and how long they wait for their first token."""

    def __init__(self, workers: int) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.store_errors = StoreErrors(registry)
        self._requests = Counter(
            "palimpsest_http_requests", "Requests that were answered.", ["method", "route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "palimpsest_http_request_seconds",
            "From a request to the end of its answer, streams included.",
            ["method", "route"],
            buckets=_REQUEST_SECONDS,
            registry=registry,
        )
        self._first_token = Histogram(
            "palimpsest_time_to_first_token_seconds",
            "From a request for a generation to its first text.",
            buckets=_FIRST_TOKEN_SECONDS,
            registry=registry,
        )
        Gauge("palimpsest_workers", "Workers that there should be.", registry=registry).set(workers)
        self._ready = Gauge("palimpsest_workers_ready", "Workers that answered when asked for this.", registry=registry)

    def gauge(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        """Something that is asked for when somebody looks."""
        show(self._registry, name, documentation, value)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request has come to its end. `route` is the pattern of its path, of which there are few."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    async def timed(self, events: AsyncGenerator[GenerationEvent, None]) -> AsyncGenerator[GenerationEvent, None]:
        """The same events; how long the first text took is noted."""
        began, waiting = perf_counter(), True
        async with aclosing(events):
            async for event in events:
                if waiting and isinstance(event, GenerationDelta):
                    self._first_token.observe(perf_counter() - began)
                    waiting = False
                yield event

    def page(self, measured: Mapping[int, Sequence[Family]], accept: str) -> tuple[bytes, str]:
        """All figures in a format that `accept` asks for, and its content type. `measured` are those of workers by their number."""
        self._ready.set(len(measured))
        processes: dict[str, Sequence[Family]] = {"http": families(self._registry)}
        processes |= {f"worker-{index}": of_worker for index, of_worker in sorted(measured.items())}
        encode, content_type = choose_encoder(accept)
        return encode(cast(CollectorRegistry, _Joined(processes))), content_type


class _Joined:
    """Families of several processes: those of one name are one."""

    def __init__(self, processes: Mapping[str, Iterable[Family]]) -> None:
        self._processes = processes

    def collect(self) -> Iterable[Metric]:
        """As a registry does."""
        found: dict[str, Metric] = {}
        for process, of_process in self._processes.items():
            for family in of_process:
                metric = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for point in family.points:
                    metric.add_sample(point.name, {**point.labels, "process": process}, point.value)
        return found.values()


def show(registry: CollectorRegistry, name: str, documentation: str, value: Callable[[], float]) -> None:
    """A gauge that is asked for when somebody looks."""
    Gauge(f"palimpsest_{name}", documentation, registry=registry).set_function(value)


def families(registry: CollectorRegistry) -> tuple[Family, ...]:
    """What a registry holds, as it travels between processes."""
    return tuple(
        Family(
            name=metric.name,
            documentation=metric.documentation,
            type=metric.type,
            points=tuple(Point(name=one.name, labels=one.labels, value=one.value) for one in metric.samples),
        )
        for metric in registry.collect()
    )
