"""Special tokens, and how user text is kept from becoming one."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tokenizers import Tokenizer as Backend

from models.chat import Messages


@dataclass(frozen=True)
class Hidden:
    """Messages in which names of special tokens are replaced by random words, and what those words stand
    for.
    """

    messages: Messages
    literals: Mapping[str, str]

    def reveal(self, text: str) -> str:
        """Put the names back."""
        for word, literal in self.literals.items():
            text = text.replace(word, literal)
        return text


class SpecialTokens:
    """The special tokens of a vocabulary: by id, by text, and where they stand in a rendered template."""

    def __init__(self, backend: Backend) -> None:
        added = {index: token for index, token in backend.get_added_tokens_decoder().items() if token.special}
        self._texts = {index: token.content for index, token in added.items()}
        self._ids = {token.content: index for index, token in added.items()}
        ordered = sorted(added.values(), key=lambda token: len(token.content), reverse=True)
        self._name = re.compile("|".join(re.escape(token.content) for token in ordered) or r"(?!)")
        self._place = re.compile(
            "|".join(
                (r"\s*" if token.lstrip else "") + re.escape(token.content) + (r"\s*" if token.rstrip else "")
                for token in ordered
            )
            or r"(?!)"
        )

    def text_of(self, token_id: int) -> str | None:
        """None when the id is no special token's."""
        return self._texts.get(token_id)

    def id_of(self, text: str) -> int | None:
        """None when no special token has this name."""
        return self._ids.get(text)

    def hide(self, messages: Messages) -> Hidden:
        """Replace every special token's name in the messages by a word that nobody can guess."""
        words: dict[str, str] = {}

        def replace(match: re.Match[str]) -> str:
            return words.setdefault(match[0], secrets.token_hex(16))

        hidden = [{key: self._name.sub(replace, value) for key, value in message.items()} for message in messages]
        return Hidden(hidden, {word: literal for literal, word in words.items()})

    def runs(self, text: str) -> Iterable[tuple[str, int | None]]:
        """Text before each special token and that token's id; the last run has none."""
        start = 0
        for match in self._place.finditer(text):
            named = self._name.search(match[0])
            assert named is not None
            yield text[start : match.start()], self._ids[named[0]]
            start = match.end()
        yield text[start:], None
