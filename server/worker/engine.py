"""The loop: admit → schedule → run → postprocess. Everything but `run` happens on the event loop's thread, so it needs no locks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from server.pairs import Pair
from server.settings import Settings
from server.store.base import Store
from server.worker.generating import advance
from server.worker.journal import Journal
from server.worker.metrics import WorkerMetrics
from server.worker.moves import Moves
from server.worker.pace import Pace
from server.worker.runner import Feed, Sample
from server.worker.runners import Runners
from server.worker.scheduler import Batch, Candidate, Limits, plan
from server.worker.session import Session
from server.worker.shares import Shares, cost


class Engine:
    """Runs every session of one worker. `spawn` starts a task that the worker's task group owns."""

    def __init__(
        self,
        settings: Settings,
        runners: Runners,
        store: Store,
        journal: Journal,
        compute: ThreadPoolExecutor,
        moving: ThreadPoolExecutor,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        metrics: WorkerMetrics,
    ) -> None:
        self._runners, self._journal, self._metrics = runners, journal, metrics
        self._settings = settings
        self._pace = Pace()
        self._limits = Limits(settings.max_batch, settings.prefill_tokens, self._beside)
        self._shares = Shares()
        self._work = asyncio.Event()
        self._step = 0
        self.moves = Moves(runners, store, journal, compute, moving, spawn, metrics, self._shares, self.wake)
        self.sessions = self.moves.sessions
        self._show(metrics)

    def _show(self, metrics: WorkerMetrics) -> None:
        """Let the figures tell what is under way here."""
        metrics.gauge(
            "resident_session_limit", "Sessions of all pairs that memory has places for.", lambda: self._runners.places
        )
        metrics.gauge(
            "resident_sessions", "Sessions whose state is in memory.", lambda: len(self.moves.residency.by_age)
        )
        metrics.gauge(
            "queued_sessions", "Sessions that have work and wait for a place.", lambda: len(self.moves.waiting())
        )
        metrics.gauge(
            "running_generations",
            "Generations that sample, or read their prompt.",
            lambda: sum(session.generation is not None for session in self.sessions.values()),
        )
        metrics.gauge(
            "reading_sessions",
            "Sessions that read what was appended to them.",
            lambda: sum(session.generation is None and session.has_work for session in self.sessions.values()),
        )

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            self._shares.present(session.tenant for session in self.sessions.values() if session.has_work)
            self.moves.admit()
            batch = plan(self._candidates(), self._limits, self._shares.had)
            if batch is None:
                self._work.clear()
                await self._work.wait()
                continue
            self._step += 1
            feeds = self._feeds(batch)
            fed = [(self.sessions[feed.key], feed) for its in feeds.values() for feed in its]
            given = sum(len(feed.tokens) - session.fed_back(len(feed.tokens)) for session, feed in fed)
            began = time.perf_counter()
            samples = await self.moves.compute(self._runners.run, feeds)
            seconds = time.perf_counter() - began
            self._metrics.stepped(len(fed), given, len(samples), seconds)
            self._pace.note(len(batch.decode), sum(count for _, count in batch.prefill), seconds)
            await self._journal.settled()  # at most one commit of sampled tokens is ever under way
            for session, feed in fed:
                self._postprocess(session, feed, samples)

    def _beside(self, decoding: int) -> int:
        """Tokens that may be read in a step beside so many sessions that decode."""
        fixed = self._settings.prefill_tokens_while_decoding
        return self._pace.budget(decoding, self._settings.prefill_tokens) if fixed is None else fixed

    def wake(self) -> None:
        """Something may have to be done."""
        self._work.set()

    def _candidates(self) -> list[Candidate]:
        return [
            Candidate(session.key, session.tenant, len(session.pending), session.generation is not None, session.served)
            for session in self.sessions.values()
            if session.row is not None and not session.moving and session.has_work
        ]

    def _feeds(self, batch: Batch) -> dict[Pair, list[Feed]]:
        counts = [(key, min(1, len(self.sessions[key].pending))) for key in batch.decode]
        feeds: dict[Pair, list[Feed]] = {}
        for key, count in [*counts, *batch.prefill]:
            session = self.sessions[key]
            assert session.row is not None
            session.served = self._step
            self.moves.residency.touch(key)
            self._shares.charge(session.tenant, cost(count, session.generation is not None))
            tokens = [session.pending[index] for index in range(count)]
            ahead = len(session.pending) - count
            voice = session.generation.voice if session.generation is not None and not ahead else None
            feeds.setdefault(session.pair, []).append(Feed(key, session.row, tokens, voice, ahead))
        return feeds

    def _postprocess(self, session: Session, feed: Feed, samples: Mapping[str, Sample]) -> None:
        if self.sessions.get(feed.key) is not session or session.row != feed.row:
            return  # dropped while the step ran
        for _ in feed.tokens:
            session.pending.popleft()
        session.folded += len(feed.tokens)
        session.touched = time.monotonic()
        sample = samples.get(feed.key)
        generation = session.generation
        # A generation that was cancelled, or a new one begun, while the step ran takes no part in it.
        if sample is not None and generation is not None and generation.voice is feed.voice:
            now = time.perf_counter()
            if generation.newest is not None:
                self._metrics.followed(now - generation.newest)
            generation.newest = now
            advance(session, generation, sample, self._journal, self.moves.drop)
        session.notify()
        if session.lease is None and session.generation is None:
            self.moves.release(session)
