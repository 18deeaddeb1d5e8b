"""Plays faults, a few at a time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.faults.account import Account
from bench.faults.hearing import Lost, WrongStory
from bench.faults.judge import Judge
from bench.faults.registry import Fault
from bench.faults.stage import MEMORY, Stage
from bench.tiny_model import build_tiny_model, calibrate_tiny_model


class Matrix:
    """All faults on one tiny model, judged by one undisturbed server. `folder` gets model, data and logs.

    As many as `lanes` are played at the same time, those that measure time alone at the end.
    """

    def __init__(self, folder: Path, seed: int, *, quick: bool, lanes: int) -> None:
        self._folder, self._seed, self._quick, self._lanes = folder, seed, quick, lanes

    async def play(self, faults: Sequence[Fault], tell: Callable[[Account], None]) -> list[Account]:
        """Every fault, each told as soon as it is over."""
        model = await asyncio.to_thread(self._model)
        accounts: list[Account] = []
        async with Stage(
            self._folder / "undisturbed", model, random.Random(self._seed), None, quick=self._quick
        ) as calm:
            # No snapshots, no haste: what the others hold is compared with a session that simply read on.
            reference = await calm.server(
                "reference", snapshot_tokens=1_000_000, snapshot_seconds=3600, idle_seconds=3600
            )
            judge = Judge(reference, random.Random(self._seed))
            for alone, lanes in ((False, self._lanes), (True, 1)):
                free = asyncio.Semaphore(lanes)

                async def play(fault: Fault, free: asyncio.Semaphore = free) -> None:
                    async with free:
                        account = await self._play_one(fault, model, judge)
                    accounts.append(account)
                    tell(account)

                async with asyncio.TaskGroup() as tasks:
                    for fault in faults:
                        if fault.alone is alone:
                            tasks.create_task(play(fault))
        return accounts

    async def _play_one(self, fault: Fault, model: dict[str, object], judge: Judge) -> Account:
        account, began = Account(fault.name), time.monotonic()
        # Every fault has a seed of its own, so that `--only` plays it as the whole matrix does.
        choose = random.Random(f"{self._seed}/{fault.name}")
        try:
            async with Stage(self._folder / fault.name, model, choose, judge, quick=self._quick) as stage:
                async with asyncio.timeout(fault.seconds):
                    await fault.play(stage, account)
        except* WrongStory as errors:
            account.wrong += len(errors.exceptions)
            account.broke(_told(errors))
        except* Lost as errors:
            account.lost += len(errors.exceptions)
            account.broke(_told(errors))
        except* Exception as errors:  # whatever it is, the other faults are played
            account.broke(_told(errors))
        account.seconds = time.monotonic() - began
        return account

    def _model(self) -> dict[str, object]:
        folder = self._folder / "model"
        folder.mkdir()
        build_tiny_model(folder)
        return {
            **MEMORY,
            "model": folder,
            "calibration": calibrate_tiny_model(folder, self._folder / "calibration.json"),
        }


def _told(group: BaseExceptionGroup[BaseException]) -> str:
    parts = [_told(error) if isinstance(error, BaseExceptionGroup) else _said(error) for error in group.exceptions]
    return "; ".join(parts)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
