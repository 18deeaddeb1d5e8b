from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pydantic import SecretStr

from server.keys import check_encryption_keys, check_export_keys, encryption_keys, export_keys

RAW = bytes(range(32))
PRIVATE = Ed25519PrivateKey.from_private_bytes(RAW)
PRIVATE_DER = PRIVATE.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
PUBLIC_DER = PRIVATE.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
PUBLIC_RAW = PRIVATE.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def text(key: bytes) -> str:
    return base64.b64encode(key).decode()


def secrets(**keys: str) -> dict[str, SecretStr]:
    return {name: SecretStr(value) for name, value in keys.items()}


def test_encryption_keys_keep_their_order() -> None:
    keys = encryption_keys(secrets(new=text(RAW), old=text(RAW[::-1])))
    assert list(keys.items()) == [("new", RAW), ("old", RAW[::-1])]
    assert encryption_keys({}) == {}


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("k1", text(RAW[:31]), "'k1' has 31 bytes instead of 32"),
        ("k1", text(RAW + b"x"), "'k1' has 33 bytes instead of 32"),
        ("k1", "", "'k1' has 0 bytes"),
        ("k1", text(RAW)[:-1], "'k1' is not base64"),
        ("k1", text(RAW) + "\n", "'k1' is not base64"),
        ("k1", "ключ", "'k1' is not base64"),
        ("", text(RAW), "id must be 1 to 32"),
        ("k" * 33, text(RAW), "id must be 1 to 32"),
        ("k 1", text(RAW), "id must be 1 to 32"),
        ("k1\n", text(RAW), "id must be 1 to 32"),
    ],
)
def test_encryption_keys_that_cannot_be_used(name: str, value: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        check_encryption_keys({"good": SecretStr(text(RAW)), name: SecretStr(value)})
    assert not value or value.strip() not in str(caught.value)


def test_export_keys_of_every_kind() -> None:
    given = secrets(a="hmac:" + text(RAW), b="ed25519:" + text(PRIVATE_DER), c="ed25519:" + text(PUBLIC_DER))
    check_export_keys(given)
    keys = export_keys(given)
    assert [(key.id, key.kind, key.secret) for key in keys] == [
        ("a", "hmac", RAW),
        ("b", "ed25519-private", RAW),
        ("c", "ed25519-public", PUBLIC_RAW),
    ]
    assert not any(str(key.secret) in repr(key) for key in keys)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (text(RAW), "must begin with hmac: or ed25519:"),
        ("rsa:" + text(RAW), "must begin with"),
        ("hmac:" + text(RAW[:31]), "31 bytes instead of 32 to 1024"),
        ("hmac:" + text(bytes(1025)), "1025 bytes"),
        ("hmac:?", "not base64"),
        ("ed25519:" + text(RAW), "no Ed25519 key in DER"),
        ("ed25519:" + text(PRIVATE_DER[:-1]), "no Ed25519 key in DER"),
        ("ed25519:" + text(PUBLIC_DER + b"x"), "no Ed25519 key in DER"),
        ("ed25519:", "no Ed25519 key in DER"),
    ],
)
def test_export_keys_that_cannot_be_used(value: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_export_keys(secrets(good="hmac:" + text(RAW), k1=value))


def test_the_first_export_key_must_sign() -> None:
    public, private = "ed25519:" + text(PUBLIC_DER), "ed25519:" + text(PRIVATE_DER)
    check_export_keys(secrets(a=private, b=public))
    with pytest.raises(ValueError, match="'b' is a public key"):
        check_export_keys(secrets(b=public, a=private))
