"""Ways to Redis other than the plain one: a user with few rights, TLS, Sentinel."""

from __future__ import annotations

import datetime
import ipaddress
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bench.redis_process import RedisClusterProcesses, RedisProcess, free_port
from server.errors import StoreUnavailable
from server.store.redis import RedisOptions, RedisStore
from server.store.sealing import PlainSealer

if TYPE_CHECKING:
    from tests.server.store.conftest import Make

TENANT = "tenant"
ONE = "sess_one"
DOCUMENT = Path("docs/redis.md")


async def _life(options: RedisOptions, make: Make) -> str:
    """Every kind of call once; what durability was found."""
    # Whether Redis is quick enough is not asked here, and machines that run tests are busy.
    store = RedisStore(replace(options, timeout_seconds=10.0), sealer=PlainSealer())
    await store.open()
    try:
        await store.ping()
        await store.claim(TENANT, "op", "digest", ONE)
        await store.settle(TENANT, "op", b"answer")
        lease = await make.begun(store, ttl_seconds=100)
        begins = make.generation(start=1)
        await make.written(store, make.entry(lease, 0, [0], operation=make.operation(), begins=begins))
        await make.written(store, make.entry(lease, 1, [1], sampled_by="gen_one"))
        assert await store.generation("gen_one") == replace(begins, tokens=(1,))
        await store.save_snapshot(lease, 2, bytes(100_000))
        await store.update(TENANT, ONE, metadata={"a": "b"}, ttl_seconds=50)
        await store.fork(TENANT, ONE, make.record("sess_child"))
        await store.adopt(make.record("sess_adopted", journaled=1), b"state", [0])
        assert len(await make.listed(store)) == 3
        assert list(await store.renew([lease], 10)) == [None]
        await store.decline(lease, 1)
        assert list(await store.wanted("server/0/1", 0.05)) == []
        await store.release(lease)
        assert (await store.load("sess_child")).snapshot == bytes(100_000)
        for session_id in (ONE, "sess_child", "sess_adopted"):
            await store.delete(TENANT, session_id)
        await store.sweep()
        return store.durability
    finally:
        await store.close()


def _documented_rights() -> list[str]:
    found = re.search(r"^user palimpsest .*? (~palimpsest:.*)$", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    assert found, "docs/redis.md has the line of the user"
    return found[1].split()


def _documented_rights_on_a_cluster() -> list[str]:
    found = re.search(r"On a cluster add `([^`]+)`", DOCUMENT.read_text("utf-8"))
    assert found, "docs/redis.md has them"
    return found[1].split()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path / "own") as process:
        yield process


def _set_user(process: RedisProcess, *rights: str) -> None:
    with redis.Redis(port=process.port) as client:
        client.execute_command("ACL SETUSER", "palimpsest", "reset", "on", ">secret", *rights)


async def test_the_documented_rights_are_enough(own: RedisProcess, make: Make) -> None:
    rights = _documented_rights()
    _set_user(own, *rights)
    options = RedisOptions(own.url, username="palimpsest", password="secret")
    assert await _life(options, make) == "fsync"
    _set_user(own, *(right for right in rights if right != "+config|get"))
    assert await _life(options, make) == "one_second"


async def test_the_documented_rights_are_enough_on_a_cluster(tmp_path: Path, make: Make) -> None:
    with RedisClusterProcesses(tmp_path) as cluster:
        for node in cluster.nodes:
            _set_user(node, *_documented_rights(), *_documented_rights_on_a_cluster())
        assert await _life(RedisOptions(cluster.url, username="palimpsest", password="secret"), make) == "one_second"


async def test_a_right_that_is_missing_is_named_by_its_document(own: RedisProcess, make: Make) -> None:
    _set_user(own, *(right for right in _documented_rights() if right != "+xadd"))
    store = RedisStore(RedisOptions(own.url, username="palimpsest", password="secret"), sealer=PlainSealer())
    await store.open()
    try:
        lease = await make.begun(store)
        [outcome] = await store.journal([make.entry(lease, 0, [0])])
        assert isinstance(outcome, StoreUnavailable)
        assert "docs/redis.md" in outcome.message
        assert await store.head(ONE) == (await store.load(ONE)).record  # nothing was half written
        assert (await store.head(ONE)).journaled == 0
    finally:
        await store.close()


async def test_a_wrong_password_says_so(own: RedisProcess) -> None:
    _set_user(own, "+@all", "~*")
    store = RedisStore(RedisOptions(own.url, username="palimpsest", password="wrong"), sealer=PlainSealer())
    await store.open()
    with pytest.raises(StoreUnavailable, match="PALIMPSEST_REDIS_PASSWORD"):
        await store.ping()
    await store.close()


async def test_tls_with_certificates_on_both_sides(tmp_path: Path, make: Make) -> None:
    authority, certificate, key = _certificates(tmp_path)
    files = ("--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--tls-ca-cert-file", str(authority))
    port = free_port()
    url = f"rediss://127.0.0.1:{port}"
    with RedisProcess(tmp_path / "tls", extra=("--tls-port", str(port), "--port", "0", *files)):
        options = RedisOptions(url, tls_ca=authority, tls_cert=certificate, tls_key=key)
        assert await _life(options, make) == "fsync"
        for stranger in (RedisOptions(url), replace(options, tls_cert=None, tls_key=None)):
            store = RedisStore(stranger, sealer=PlainSealer())
            await store.open()
            with pytest.raises(StoreUnavailable):
                await store.ping()
            await store.close()


@pytest.fixture
def sentinel(own: RedisProcess, tmp_path: Path) -> Iterator[int]:
    """The port of one that watches over `own`, under the name of `main`."""
    port, config = free_port(), tmp_path / "sentinel.conf"
    config.write_text(f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\nsentinel monitor main 127.0.0.1 {own.port} 1\n")
    process = subprocess.Popen(["redis-server", config, "--sentinel"], stdout=subprocess.DEVNULL)
    try:
        _wait_for_sentinel(port)
        yield port
    finally:
        process.kill()
        process.wait()


async def test_sentinels_name_the_primary(sentinel: int, make: Make) -> None:
    options = RedisOptions(f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{sentinel}/main")
    assert await _life(options, make) == "fsync"


def _wait_for_sentinel(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            with redis.Redis(port=port) as client:
                client.ping()
                return
        except redis.ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def _certificates(folder: Path) -> tuple[Path, Path, Path]:
    """An authority of its own, certificate and key of 127.0.0.1, as files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    own = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    paths = (folder / "authority.pem", folder / "certificate.pem", folder / "key.pem")
    for path, content in zip(paths, (pem, pem, own), strict=True):
        path.write_bytes(content)
    return paths
