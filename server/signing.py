"""Signatures of exported sessions: HMAC-SHA256 or Ed25519, by key id."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from server.errors import InvalidRequest
from server.keys import KEY_BYTES, ExportKey, export_keys
from server.settings import InvalidSettingsError, Settings
from server.store.blobs import make_private_folder, sync_folder

Algorithm = Literal["hmac-sha256", "ed25519"]

SIGNATURE_BYTES: dict[Algorithm, int] = {"hmac-sha256": 32, "ed25519": 64}

_FILE = "export.key"


class Keyring:
    """The keys a server signs and verifies with. The first one signs."""

    def __init__(self, keys: Sequence[ExportKey]) -> None:
        """`keys` begin with one that signs, and no two have the same id."""
        self._signer = keys[0]
        assert self._signer.kind != "ed25519-public", "the first key must be able to sign"
        self._keys = {key.id: key for key in keys}

    @property
    def key_id(self) -> str:
        """Which key signs."""
        return self._signer.id

    @property
    def algorithm(self) -> Algorithm:
        """How it signs."""
        return _algorithm(self._signer)

    def sign(self, message: bytes) -> bytes:
        """`SIGNATURE_BYTES[algorithm]` bytes."""
        if self._signer.kind == "hmac":
            return hmac.digest(self._signer.secret, message, "sha256")
        return Ed25519PrivateKey.from_private_bytes(self._signer.secret).sign(message)

    def verify(self, key_id: str, algorithm: Algorithm, message: bytes, signature: bytes) -> None:
        """Raise `InvalidRequest` unless the named key signed `message`; `unknown_export_key` when there is no such key."""
        key = self._keys.get(key_id)
        if key is None:
            raise InvalidRequest(
                f"The file is signed with key {key_id!r}, which this server does not have: add it to PALIMPSEST_EXPORT_KEYS, "
                "or export again from a server that shares a key with this one.",
                code="unknown_export_key",
            )
        if _algorithm(key) != algorithm or not _signed(key, message, signature):
            raise InvalidRequest(
                f"The file's signature is not that of key {key_id!r}: the file was altered, or another key has this id.",
                code="import_refused",
            )


def load_export_keys(settings: Settings) -> Keyring:
    """The keys of the settings, or else the one in the data folder, made at first use.

    Blocks for one small file. Raises `InvalidSettingsError` when that can be neither read nor made.
    """
    keys = export_keys(settings.export_keys)
    return Keyring(keys or (_local_key(settings.data_dir),))


def _algorithm(key: ExportKey) -> Algorithm:
    return "hmac-sha256" if key.kind == "hmac" else "ed25519"


def _signed(key: ExportKey, message: bytes, signature: bytes) -> bool:
    if key.kind == "hmac":
        return hmac.compare_digest(hmac.digest(key.secret, message, "sha256"), signature)
    if key.kind == "ed25519-private":
        public = Ed25519PrivateKey.from_private_bytes(key.secret).public_key()
    else:
        public = Ed25519PublicKey.from_public_bytes(key.secret)
    try:
        public.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _local_key(folder: Path) -> ExportKey:
    path = folder / _FILE
    try:
        if not path.exists():
            _make(path)
        secret = base64.b64decode(path.read_bytes().strip(), validate=True)
    except OSError as error:
        raise InvalidSettingsError(
            f"PALIMPSEST_EXPORT_KEYS: there is none, and {path} cannot be read or made ({error.strerror}): set a key, or make "
            "the data folder writable"
        ) from None
    except ValueError:
        secret = b""
    if len(secret) != KEY_BYTES:
        raise InvalidSettingsError(
            f"PALIMPSEST_EXPORT_KEYS: {path} is damaged; restore it, or remove it to have a new one made, which verifies no "
            "older export"
        )
    return ExportKey(f"local-{hashlib.sha256(secret).hexdigest()[:8]}", "hmac", secret)


def _make(path: Path) -> None:
    """Put a new key there, whole and for good. Whoever comes first wins."""
    make_private_folder(path.parent)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        with open(partial, "xb", opener=_private) as file:
            file.write(base64.b64encode(secrets.token_bytes(KEY_BYTES)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        # A link, unlike a rename, does not replace what another server put there in the meantime.
        path.hardlink_to(partial)
        sync_folder(path.parent)
    except FileExistsError:
        return
    finally:
        partial.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
