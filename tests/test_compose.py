"""What docker-compose.yml and deploy/ promise, as far as it can be seen without Docker; redis.conf on a real Redis."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from bench.redis_process import free_port
from server.settings import PREFIX, Settings, load

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    found: dict[str, dict[str, Any]] = compose["services"]
    declared = set(compose["volumes"])
    for service in found.values():
        named = {volume.partition(":")[0] for volume in service["volumes"]}
        assert {name for name in named if not name.startswith(".")} <= declared
    return found


@pytest.fixture(scope="module")
def dockerfile() -> str:
    return (DEPLOY / "Dockerfile").read_text(encoding="utf-8")


def _seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def _variables(pairs: dict[str, str]) -> dict[str, str]:
    """As the container would see them, when nothing is set outside: `${NAME:-default}` is its default."""
    return {name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) for name, value in pairs.items()}


@pytest.fixture
def contained(services: dict[str, dict[str, Any]], dockerfile: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of the server in its container."""
    built = dict(re.findall(r"^\s+(?:ENV )?(PALIMPSEST_\w+)=(\S+)", dockerfile, re.MULTILINE))
    given = built | _variables(services["server"]["environment"])
    fields = {PREFIX + name.upper() for name in Settings.model_fields}
    assert set(given) - {"PALIMPSEST_CACHE"} <= fields, "a variable that is no setting would be ignored"
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return load()


def test_server_and_redis_find_each_other(contained: Settings, services: dict[str, dict[str, Any]]) -> None:
    assert contained.store == "redis://redis:6379/0"
    assert set(services["server"]["networks"]) & set(services["redis"]["networks"])
    assert contained.host == "0.0.0.0"
    assert services["server"]["ports"] == [f"127.0.0.1:8000:{contained.port}"]
    assert contained.api_keys == {}, "an empty variable means none"


def test_stopping_leaves_time_to_drain(contained: Settings, services: dict[str, dict[str, Any]]) -> None:
    grace = _seconds(services["server"]["stop_grace_period"])
    assert grace >= contained.drain_seconds + 15


def test_the_server_waits_for_a_redis_that_answers(services: dict[str, dict[str, Any]]) -> None:
    assert services["server"]["depends_on"]["redis"]["condition"] == "service_healthy"
    assert "redis-cli ping" in services["redis"]["healthcheck"]["test"][1]
    assert all(service["restart"] == "unless-stopped" for service in services.values())


def test_redis_is_reached_by_the_server_only(services: dict[str, dict[str, Any]]) -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    assert "ports" not in services["redis"]
    for network in services["redis"]["networks"]:
        assert compose["networks"][network]["internal"] is True


def test_what_must_not_be_lost_lies_in_volumes(services: dict[str, dict[str, Any]], contained: Settings) -> None:
    conf = (DEPLOY / "redis.conf").read_text(encoding="utf-8")
    assert f"sessions:{re.search(r'^dir (.+)$', conf, re.MULTILINE)[1]}" in services["redis"]["volumes"]  # type: ignore[index]
    targets = {volume.split(":")[1] for volume in services["server"]["volumes"]}
    assert str(contained.data_dir) in targets
    mounted = next(volume for volume in services["redis"]["volumes"] if volume.startswith("./"))
    source, target, mode = mounted.split(":")
    assert (ROOT / source).is_file()
    assert services["redis"]["command"][:2] == ["redis-server", target]
    assert mode == "ro"


def test_the_image_runs_as_nobody_special_and_asks_readyz(dockerfile: str, contained: Settings) -> None:
    final = dockerfile[dockerfile.rindex("\nFROM ") :]
    (user,) = re.findall(r"^USER (\S+)$", final, re.MULTILINE)
    assert user not in ("root", "0")
    assert f"useradd --system --uid 10001 --home-dir /var/lib/palimpsest --create-home {user}" in final
    assert re.search(rf"HEALTHCHECK .*\\\n.*127\.0\.0\.1:{contained.port}/readyz", final)
    assert final.index("USER ") < final.index("ENTRYPOINT ")
    for folder in re.findall(r'"(/var/[^"]+)"', re.search(r"^VOLUME (.+)$", final, re.MULTILINE)[1]):  # type: ignore[index]
        assert re.search(rf"install --directory --owner {user} .*{folder}", final), (
            "a volume takes its owner from the image"
        )


def test_all_that_is_copied_is_there_and_not_ignored(dockerfile: str) -> None:
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [
        name for line in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE) for name in line.split()
    ]
    assert {"server", "models", "clients/python", "pyproject.toml"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in allowed


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    """A real Redis with deploy/redis.conf; only folder, port and address are others, and there is a limit of memory."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    assert program, "redis-server is missing; install it (on Debian: apt-get install redis-server)"
    folder, port = tmp_path_factory.mktemp("redis"), free_port()
    conf = folder / "redis.conf"
    # Redis goes into `dir` while it reads the file: an option behind it would come too late.
    conf.write_text((DEPLOY / "redis.conf").read_text(encoding="utf-8").replace("\ndir /data\n", f"\ndir {folder}\n"))
    arguments = ["--port", str(port), "--bind", "127.0.0.1", "--maxmemory", "64mb"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, conf, *arguments], stdout=log, stderr=log)
    client = redis.Redis(port=port, decode_responses=True)
    try:
        deadline = time.monotonic() + 15
        while process.poll() is None and time.monotonic() < deadline:
            with suppress(redis.ConnectionError):
                client.ping()
                break
            time.sleep(0.02)
        else:
            pytest.fail((folder / "log").read_text(encoding="utf-8"))
        yield client
    finally:
        client.close()
        process.kill()
        process.wait()


def test_redis_takes_its_configuration_and_answers_after_fsync(configured: redis.Redis) -> None:
    persistence: dict[str, Any] = configured.info("persistence")
    assert persistence["aof_enabled"] == 1
    values = {str(name): str(value) for name, value in configured.config_get("*").items()}
    assert values["appendfsync"] == "always"
    assert values["no-appendfsync-on-rewrite"] == "no"
    assert values["maxmemory"] == str(64 << 20)
    replica = values["client-output-buffer-limit"].partition("slave ")[2].split()[:3]
    assert [int(part) for part in replica] == [2 << 30, 1 << 30, 120]


def test_a_full_redis_refuses_writes_and_drops_nothing(configured: redis.Redis) -> None:
    configured.set("kept", "x", px=3_600_000)
    blob = "x" * (8 << 20)
    with suppress(redis.exceptions.OutOfMemoryError):
        for number in range(20):
            configured.set(f"blob-{number}", blob)
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        configured.set("one-more", blob)
    stored = configured.dbsize() - 1
    assert 0 < stored < 8
    assert configured.get("kept") == "x"
