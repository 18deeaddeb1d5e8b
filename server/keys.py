"""Keys as they stand in settings: an id and base64. Read and checked here, used by `store/sealing.py` and `signing.py`."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import SecretStr

KEY_BYTES = 32
"""Of an AES-256 key, and the least of an HMAC key."""
MOST_HMAC_KEY_BYTES = 1024

_ID = re.compile(r"[A-Za-z0-9_.-]{1,32}")
_PRIVATE_DER = bytes.fromhex("302e020100300506032b657004220420")
_PUBLIC_DER = bytes.fromhex("302a300506032b6570032100")
"""What stands before the 32 bytes of an Ed25519 key in DER (RFC 8410, PKCS #8 and SubjectPublicKeyInfo)."""

KeyKind = Literal["hmac", "ed25519-private", "ed25519-public"]


@dataclass(frozen=True)
class ExportKey:
    """A key that signs or verifies exported sessions. `secret` is the raw key: 32 bytes for Ed25519."""

    id: str
    kind: KeyKind
    secret: bytes = field(repr=False)


def check_encryption_keys(keys: Mapping[str, SecretStr]) -> None:
    """Raise `ValueError`, without the key in its text, unless every id and key can be used."""
    encryption_keys(keys)


def check_export_keys(keys: Mapping[str, SecretStr]) -> None:
    """Raise `ValueError`, without the key in its text, unless every id and key can be used and the first one signs."""
    export_keys(keys)


def encryption_keys(keys: Mapping[str, SecretStr]) -> dict[str, bytes]:
    """Raw AES-256 keys by id, in order. Raises `ValueError`."""
    return {name: _encryption_key(name, secret.get_secret_value()) for name, secret in keys.items()}


def export_keys(keys: Mapping[str, SecretStr]) -> tuple[ExportKey, ...]:
    """Keys of `id: "hmac:…" | "ed25519:…"`, in order. Raises `ValueError`."""
    found = tuple(_export_key(name, secret.get_secret_value()) for name, secret in keys.items())
    if found and found[0].kind == "ed25519-public":
        raise ValueError(
            f"the first key signs, and {found[0].id!r} is a public key: put an hmac or private key before it"
        )
    return found


def _encryption_key(name: str, text: str) -> bytes:
    key = _decoded(name, text)
    if len(key) != KEY_BYTES:
        raise ValueError(
            f"key {name!r} has {len(key)} bytes instead of {KEY_BYTES}; make one with: openssl rand -base64 32"
        )
    return key


def _export_key(name: str, text: str) -> ExportKey:
    kind, _, encoded = text.partition(":")
    if kind == "hmac":
        key = _decoded(name, encoded)
        if not KEY_BYTES <= len(key) <= MOST_HMAC_KEY_BYTES:
            raise ValueError(
                f"key {name!r} has {len(key)} bytes instead of {KEY_BYTES} to {MOST_HMAC_KEY_BYTES}; "
                "make one with: openssl rand -base64 32"
            )
        return ExportKey(name, "hmac", key)
    if kind == "ed25519":
        return _ed25519_key(name, _decoded(name, encoded))
    raise ValueError(f"key {name!r} must begin with hmac: or ed25519:")


def _ed25519_key(name: str, der: bytes) -> ExportKey:
    raw = der[-32:]
    if der == _PRIVATE_DER + raw:
        return ExportKey(name, "ed25519-private", raw)
    if der == _PUBLIC_DER + raw:
        return ExportKey(name, "ed25519-public", raw)
    raise ValueError(
        f"key {name!r} is no Ed25519 key in DER; make one with: openssl genpkey -algorithm ed25519 -outform DER | base64 -w0"
    )


def _decoded(name: str, text: str) -> bytes:
    if not _ID.fullmatch(name):
        raise ValueError("a key's id must be 1 to 32 letters, digits, dots, dashes or underscores")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"key {name!r} is not base64") from None
