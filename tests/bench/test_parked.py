"""The figures of parked sessions are right, and a lost session is noticed; then all of it on a real server and a real Redis."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import parked
from bench.parked import Crowd, LostSessionError, percentile


def test_percentiles_are_values_that_were_seen() -> None:
    seconds = [number / 1000 for number in range(100, 0, -1)]
    assert percentile(seconds, 0.5) == 50
    assert percentile(seconds, 0.99) == 99
    assert percentile(seconds, 1.0) == 100
    assert percentile([0.007], 0.99) == percentile([0.007], 0.5) == 7


@dataclass
class Handful:
    """As much of a client and its sessions as a crowd needs; `hidden` is left out of lists, `moved` stands elsewhere."""

    hidden: str | None = None
    moved: str | None = None
    made: list[str] = field(default_factory=list)

    @property
    def sessions(self) -> Handful:
        return self

    async def create(self, metadata: dict[str, str]) -> Any:
        self.made.append(f"sess_{len(self.made):04}")
        return self._handle(self.made[-1])

    async def get(self, session_id: str) -> Any:
        return self._handle(session_id)

    async def list(self, *, limit: int, after: str | None, order: str) -> Any:
        known = [one for one in self.made if one != self.hidden and (after is None or one > after)]
        data = [SimpleNamespace(id=one) for one in known[:limit]]
        return SimpleNamespace(data=data, has_more=len(known) > limit)

    def _handle(self, session_id: str) -> Any:
        async def append(text: str) -> Any:
            return SimpleNamespace(position=40)

        async def generate(prompt: str, **_: object) -> Any:
            return SimpleNamespace(position=41 if session_id == self.moved else 40)

        return SimpleNamespace(id=session_id, info=SimpleNamespace(state_bytes=9), append=append, generate=generate)


def _crowd(client: Handful) -> Crowd:
    return Crowd(client, seed=1)  # type: ignore[arg-type]


async def test_all_are_made_listed_and_resumed() -> None:
    crowd = _crowd(Handful())
    _, took = await crowd.make(250, clients=4, seconds=60)
    assert len(took) == len(crowd.positions) == 250
    assert len(await crowd.list_all()) == 3
    _, resumed = await crowd.resume(30, clients=3)
    assert len(resumed) == 30


async def test_making_ends_when_the_time_is_over() -> None:
    crowd = _crowd(Handful())
    _, took = await crowd.make(250, clients=4, seconds=0)
    assert len(took) == len(crowd.positions) == 0


async def test_a_session_missing_from_the_list_is_noticed() -> None:
    client = Handful(hidden="sess_0007")
    crowd = _crowd(client)
    await crowd.make(20, clients=1, seconds=60)
    with pytest.raises(LostSessionError, match="20 sessions were made, 19 are listed"):
        await crowd.list_all()


async def test_a_session_that_stands_elsewhere_is_noticed() -> None:
    client = Handful(moved="sess_0000")
    crowd = _crowd(client)
    await crowd.make(1, clients=1, seconds=60)
    with pytest.raises(ExceptionGroup) as caught:
        await crowd.resume(1, clients=1)
    assert caught.group_contains(LostSessionError, match="stands at 41, not 40")


def test_sessions_are_parked_in_a_real_redis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "parked.json"
    arguments = ["--sessions", "24", "--resident", "4", "--clients", "3", "--resumes", "6", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["bench.parked", *arguments])
    parked.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures == json.loads(out.read_text(encoding="utf-8"))
    assert figures["sessions"] == 24
    assert not figures["seconds_ran_out"]
    # Most of the sessions had to leave the four rows, so their states are in Redis.
    assert figures["redis_bytes_a_session"] > 2_000
    assert 0 < figures["resume_p50_ms"] <= figures["resume_p99_ms"]
