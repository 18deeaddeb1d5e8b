"""AES-256-GCM under a key that is derived anew for every content.

Random nonces of 96 bits alone would limit a key to 2^32 contents (NIST SP 800-38D, 8.3), which a busy store has journaled in weeks.
With a random salt that the content's own key is derived from, key and nonce together have 192 random bits.
"""

from __future__ import annotations

import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

SALT_BYTES = 12
NONCE_BYTES = 12
TAG_BYTES = 16
OVERHEAD_BYTES = SALT_BYTES + NONCE_BYTES + TAG_BYTES

_PIECE_BYTES = 1 << 20
"""The cipher keeps Python's global lock while it works; between pieces other threads have their turn."""


def encrypted(key: bytes, content: bytes, about: bytes) -> bytes:
    """Salt, nonce, ciphertext, tag. `about` is authenticated with the content, and not kept."""
    salt, nonce = os.urandom(SALT_BYTES), os.urandom(NONCE_BYTES)
    cipher = Cipher(algorithms.AES(_derived(key, salt)), modes.GCM(nonce)).encryptor()
    cipher.authenticate_additional_data(about)
    pieces = [cipher.update(piece) for piece in _pieces(content)]
    cipher.finalize()
    return b"".join([salt, nonce, *pieces, cipher.tag])


def decrypted(key: bytes, sealed: memoryview, about: bytes) -> bytes:
    """The content again. Raises `ValueError` when anything was altered, or key or `about` are others."""
    if len(sealed) < OVERHEAD_BYTES:
        raise ValueError("it is cut short")
    salt, sealed = sealed[:SALT_BYTES], sealed[SALT_BYTES:]
    nonce, body, tag = bytes(sealed[:NONCE_BYTES]), sealed[NONCE_BYTES:-TAG_BYTES], bytes(sealed[-TAG_BYTES:])
    cipher = Cipher(algorithms.AES(_derived(key, salt)), modes.GCM(nonce, tag)).decryptor()
    cipher.authenticate_additional_data(about)
    pieces = [cipher.update(piece) for piece in _pieces(body)]
    try:
        cipher.finalize()
    except InvalidTag:
        raise ValueError("it does not match its tag") from None
    return b"".join(pieces)


def _derived(key: bytes, salt: bytes | memoryview) -> bytes:
    """HMAC as the one-block key derivation of NIST SP 800-108."""
    return hmac.digest(key, b"palimpsest sealing 1\0" + salt, "sha256")


def _pieces(content: bytes | memoryview) -> list[memoryview]:
    view = memoryview(content)
    return [view[start : start + _PIECE_BYTES] for start in range(0, len(content), _PIECE_BYTES)]
