"""The bytes behind each token of a vocabulary."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer as Backend

from models.errors import TokenizerError
from models.settled import Cutter

_ACROSS_SPACE = re.compile(r"\S (?:\S|$)")
_ACROSS_LINE_END = re.compile(r"(?:^|\S)\n\S")


class TokenBytes:
    """Bytes by token id, for byte-level vocabularies and for SentencePiece's with byte fallback."""

    def __init__(self, backend: Backend, decoder: Mapping[str, Any] | None) -> None:
        self._backend = backend
        self._added = {index: token.content.encode() for index, token in backend.get_added_tokens_decoder().items()}
        written = json.dumps(decoder)
        self._alphabet = _byte_alphabet() if '"ByteLevel"' in written else None
        if self._alphabet is None and '"ByteFallback"' not in written and '"Metaspace"' not in written:
            raise TokenizerError(
                f"only byte-level and SentencePiece tokenizers are supported, not one with this decoder: {written[:80]}"
            )

    def of(self, token_id: int) -> bytes:
        """Empty for an id that the vocabulary does not have."""
        if token_id in self._added:
            return self._added[token_id]
        token = self._backend.id_to_token(token_id) if token_id >= 0 else None
        return b"" if token is None else self._spell(token)

    def cutter(self) -> Cutter:
        """A cutter that avoids the boundaries which tokens of this vocabulary reach across.

        Byte-level and SentencePiece vocabularies learned word by word have no such token; others exist.
        """
        added = set(self._added.values())
        texts = [
            spelled.decode("utf-8", "replace")
            for token in self._backend.get_vocab(with_added_tokens=False)
            if (b" " in (spelled := self._spell(token)) or b"\n" in spelled) and spelled not in added
        ]
        return Cutter(
            spaces=not any(_ACROSS_SPACE.search(text) for text in texts),
            line_ends=not any(_ACROSS_LINE_END.search(text) for text in texts),
        )

    def _spell(self, token: str) -> bytes:
        if self._alphabet is not None:
            return bytes(self._alphabet[char] for char in token if char in self._alphabet)
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes((int(token[3:5], 16),))
        return token.replace("▁", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: those that print stand for themselves, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}
