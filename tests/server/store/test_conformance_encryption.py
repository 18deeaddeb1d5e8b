"""With an encrypting sealer every store keeps its promises, and nothing of what was said can be read where it lies."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis

from server.errors import StateRefused
from server.store.base import Store
from server.store.sealing import EncryptingSealer, Sealer

if TYPE_CHECKING:
    from tests.server.store.conftest import Bench, Make

TENANT, ONE = "tenant", "sess_one"
SECRET = "what nobody else may read"
TOKENS = tuple(700_000 + number for number in range(12))

_APART = b"-" * 8
"""Stands between what is stored: a line end would be a byte of the token ids, and complete one by chance."""


@pytest.fixture
async def store(bench: Bench, encrypting: Sealer) -> AsyncIterator[Store]:
    store = bench.store(sealer=encrypting)
    await store.open()
    yield store
    await store.close()


async def _told(store: Store, make: Make) -> None:
    """The secret in every place that content can be in."""
    await store.create(make.record(metadata={"note": SECRET}))
    lease = await store.acquire(ONE, "server/0/1", 60)
    begins = replace(make.generation(start=12, tokens=TOKENS), request=SECRET.encode())
    await make.written(store, make.entry(lease, 0, TOKENS, open_text=SECRET, open_tokens=4, begins=begins))
    await make.written(store, make.entry(lease, 12, TOKENS, open_text=SECRET, sampled_by="gen_one"))
    await store.save_snapshot(lease, 12, SECRET.encode())
    await store.fork(TENANT, ONE, make.record("sess_child", metadata={"note": SECRET}))
    await store.adopt(make.record("sess_adopted", journaled=24, open_text=SECRET), SECRET.encode(), TOKENS)
    await store.claim(TENANT, "op_one", "digest", ONE)
    await store.settle(TENANT, "op_one", SECRET.encode())


async def _assert_told(store: Store, make: Make) -> None:
    for session_id, tail in ((ONE, TOKENS), ("sess_child", TOKENS), ("sess_adopted", TOKENS)):
        loaded = await store.load(session_id)
        assert (loaded.snapshot, loaded.record.open_text) == (SECRET.encode(), SECRET)
        assert tuple(loaded.tail) == tail
    assert (await store.get(TENANT, "sess_child")).metadata == {"note": SECRET}
    generation = await store.generation("gen_one")
    assert generation is not None
    assert (generation.request, tuple(generation.tokens)) == (SECRET.encode(), TOKENS * 2)
    assert (await store.claim(TENANT, "op_one", "digest", ONE)).answer == SECRET.encode()


def _stored(bench: Bench) -> bytes:
    """Every byte of keys and values, or files."""
    if bench.kind == "embedded":
        return b"".join(path.read_bytes() for path in sorted(bench.folder.rglob("*")) if path.is_file())
    content = []
    for address in bench.url.rpartition("://")[2].partition("/")[0].split(","):
        client: Any = redis.Redis(port=int(address.rpartition(":")[2]))
        for key in client.scan_iter(f"{bench.prefix}*"):
            content += [key, _value(client, key)]
        client.close()
    return _APART.join(content)


_READ: Mapping[bytes, tuple[str | int, ...]] = {
    b"string": ("GET",),
    b"hash": ("HGETALL",),
    b"list": ("LRANGE", 0, -1),
    b"zset": ("ZRANGE", 0, -1),
    b"set": ("SMEMBERS",),
    b"stream": ("XRANGE", "-", "+"),
}


def _value(client: Any, key: bytes) -> bytes:
    """As the server would send it: DUMP may compress."""
    kind: bytes = client.execute_command("TYPE", key)
    command, *arguments = _READ[kind]
    return _flat(client.execute_command(command, key, *arguments))


def _flat(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        return _APART.join(_flat(part) for pair in value.items() for part in pair)
    if isinstance(value, (list, tuple, set)):
        return _APART.join(map(_flat, value))
    return str(value).encode()


def _packed(size: str, tokens: Sequence[int]) -> bytes:
    """As they would lie there. Of a single one the upper half is bytes that are everywhere, and the rest comes by chance."""
    return b"".join(struct.pack(size, token) for token in tokens)


async def test_what_was_told_can_be_read_with_the_key_only(
    store: Store, bench: Bench, make: Make, folder: Path
) -> None:
    await _told(store, make)
    await _assert_told(store, make)
    stored = _stored(bench)
    assert ONE.encode() in stored  # else this looks at the wrong place
    assert SECRET.encode() not in stored
    for size in ("<I", ">I"):
        for pair in pairwise(TOKENS):
            assert _packed(size, pair) not in stored
    assert str(TOKENS[0]).encode() not in stored


async def test_without_encryption_it_could_be_read(bench: Bench, make: Make) -> None:
    """That the test above can fail."""
    store = bench.store()
    await store.open()
    await _told(store, make)
    stored = _stored(bench)
    await store.close()
    assert SECRET.encode() in stored
    assert _packed("<I", TOKENS[:2]) in stored


async def test_another_key_reads_nothing(store: Store, bench: Bench, make: Make) -> None:
    await _told(store, make)
    stranger = bench.store(sealer=EncryptingSealer({"other": b"o" * 32}))
    await stranger.open()
    try:
        for call in (
            lambda: stranger.load(ONE),
            lambda: stranger.get(TENANT, ONE),
            lambda: stranger.generation("gen_one"),
            lambda: stranger.claim(TENANT, "op_one", "digest", ONE),
            lambda: stranger.fork(TENANT, ONE, make.record("sess_second")),
        ):
            with pytest.raises(StateRefused, match="key"):
                await call()
    finally:
        await stranger.close()
    await _assert_told(store, make)


async def test_after_a_rotation_everything_is_read_with_both_keys(store: Store, bench: Bench, make: Make) -> None:
    await _told(store, make)
    rotated = bench.store(sealer=EncryptingSealer({"new": b"n" * 32, "key": b"k" * 32}))
    await rotated.open()
    try:
        await _assert_told(rotated, make)
        lease = await rotated.acquire(ONE, "server/0/2", 60)
        await make.appended(rotated, lease, 1)
        with pytest.raises(StateRefused, match="new"):
            await store.load(ONE)
        assert tuple((await rotated.load(ONE)).tail) == (*TOKENS, 1)
    finally:
        await rotated.close()
