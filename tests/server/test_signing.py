from __future__ import annotations

import base64
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from server.errors import InvalidRequest
from server.keys import ExportKey
from server.settings import InvalidSettingsError, load
from server.signing import SIGNATURE_BYTES, Keyring, load_export_keys

RAW = bytes(range(32))
PUBLIC = Ed25519PrivateKey.from_private_bytes(RAW).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
HMAC = ExportKey("h", "hmac", RAW)
PRIVATE = ExportKey("e", "ed25519-private", RAW)
PUBLIC_ONLY = ExportKey("e", "ed25519-public", PUBLIC)
MESSAGE = b"what is signed"


@pytest.mark.parametrize(("key", "verifier"), [(HMAC, HMAC), (PRIVATE, PRIVATE), (PRIVATE, PUBLIC_ONLY)])
def test_a_signature_is_of_one_message_and_one_key(key: ExportKey, verifier: ExportKey) -> None:
    signer = Keyring([key])
    ring = Keyring([ExportKey("own", "hmac", bytes(32)), verifier])
    signature = signer.sign(MESSAGE)
    assert len(signature) == SIGNATURE_BYTES[signer.algorithm]
    ring.verify(signer.key_id, signer.algorithm, MESSAGE, signature)
    for message, wrong in [
        (MESSAGE + b"!", signature),
        (MESSAGE, bytes([signature[0] ^ 1]) + signature[1:]),
        (MESSAGE, signature[:-1]),
        (MESSAGE, b""),
        (MESSAGE, bytes(len(signature))),
    ]:
        with pytest.raises(InvalidRequest, match="altered") as caught:
            ring.verify(signer.key_id, signer.algorithm, message, wrong)
        assert caught.value.code == "import_refused"


def test_a_key_does_not_verify_by_another_algorithm() -> None:
    public = Keyring([ExportKey("own", "hmac", bytes(32)), PUBLIC_ONLY])
    with pytest.raises(InvalidRequest):
        public.verify("e", "hmac-sha256", MESSAGE, Keyring([ExportKey("e", "hmac", PUBLIC)]).sign(MESSAGE))
    with pytest.raises(InvalidRequest):
        Keyring([HMAC]).verify("h", "ed25519", MESSAGE, Keyring([PRIVATE]).sign(MESSAGE))
    with pytest.raises(InvalidRequest):
        Keyring([HMAC]).verify("h", "ed25519", MESSAGE, Keyring([HMAC]).sign(MESSAGE))


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"key 'e'.*add it to PALIMPSEST_EXPORT_KEYS") as caught:
        Keyring([HMAC]).verify("e", "ed25519", MESSAGE, bytes(64))
    assert caught.value.code == "unknown_export_key"


def test_keys_of_the_settings_leave_the_folder_alone(tmp_path: Path) -> None:
    key = "hmac:" + base64.b64encode(RAW).decode()
    ring = load_export_keys(load(data_dir=tmp_path / "data", export_keys={"first": key, "second": key}))
    assert (ring.key_id, ring.algorithm) == ("first", "hmac-sha256")
    assert not (tmp_path / "data").exists()


def test_a_local_key_is_made_once_and_is_its_owners_only(tmp_path: Path) -> None:
    settings = load(data_dir=tmp_path / "data")
    first, second = load_export_keys(settings), load_export_keys(settings)
    assert first.key_id == second.key_id
    assert first.key_id.startswith("local-")
    assert len(first.key_id) == len("local-") + 8
    second.verify(first.key_id, first.algorithm, MESSAGE, first.sign(MESSAGE))
    (file,) = (tmp_path / "data").iterdir()
    assert file.name == "export.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_servers_that_start_together_get_one_key(tmp_path: Path) -> None:
    settings = load(data_dir=tmp_path / "data")
    with ThreadPoolExecutor(8) as threads:
        rings = list(threads.map(lambda _: load_export_keys(settings), range(16)))
    assert len({ring.sign(MESSAGE) for ring in rings}) == 1
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["export.key"]


def test_a_key_that_another_server_put_there_in_the_meantime_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load(data_dir=tmp_path)
    first = load_export_keys(settings)
    monkeypatch.setattr(Path, "exists", lambda _: False)
    assert load_export_keys(settings).sign(MESSAGE) == first.sign(MESSAGE)
    assert [path.name for path in tmp_path.iterdir()] == ["export.key"]


@pytest.mark.parametrize("content", [b"", b"short", b"\xff\xfe", base64.b64encode(bytes(31))])
def test_a_damaged_local_key_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "export.key").write_bytes(content)
    with pytest.raises(InvalidSettingsError, match="is damaged; restore it"):
        load_export_keys(load(data_dir=tmp_path))
    assert (tmp_path / "export.key").read_bytes() == content


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InvalidSettingsError, match="cannot be read or made"):
        load_export_keys(load(data_dir=tmp_path / "file"))
