"""What a server has stored of a session, read from its data folder while it runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import torch
from torch import Tensor

from bench.server_process import wait_until
from models.codec import StateKind, decode_state
from server.store.base import StoredSession
from server.store.embedded import EmbeddedStore


def stored_session(data_dir: Path, session_id: str) -> StoredSession:
    """Record, snapshot and journal tail as they are now."""

    async def load() -> StoredSession:
        store = EmbeddedStore(data_dir)
        await store.open()
        try:
            return await store.load(session_id)
        finally:
            await store.close()

    return asyncio.run(load())


def settled_session(data_dir: Path, session_id: str) -> StoredSession:
    """The same, once a snapshot covers everything journaled."""
    found: list[StoredSession] = []

    def covered() -> bool:
        found.append(stored_session(data_dir, session_id))
        return found[-1].snapshot is not None and found[-1].snapshot_position == found[-1].record.journaled

    wait_until(covered, "a snapshot of everything", 20)
    return found[-1]


def saved_state(data_dir: Path, session_id: str, kind: StateKind) -> dict[str, Tensor]:
    """The tensors of a session's memory, once a snapshot covers everything journaled."""
    snapshot = settled_session(data_dir, session_id).snapshot
    assert snapshot is not None
    return decode_state(snapshot, kind).tensors()


def assert_same_state(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal, floats to 1e-4 of the tensor's largest value."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if not tensor.is_floating_point():
            # Rounding to int8 may fall to either side.
            slack = 1 if tensor.dtype == torch.int8 else 0
            assert (found[name].long() - tensor.long()).abs().max() <= slack, name
            continue
        finite = tensor.isfinite()
        assert torch.equal(found[name].isfinite(), finite), name
        scale = float(tensor[finite].abs().max()) if finite.any() else 1.0
        far = (found[name][finite] - tensor[finite]).abs()
        assert not far.numel() or float(far.max()) <= 1e-4 * max(scale, 1e-6), name
