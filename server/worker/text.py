"""From what a request says to the tokens a session takes in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from models.errors import TokenizerError
from models.tokenizer import Tokenizer
from server.errors import InvalidRequest
from server.messages import ChatMessage
from server.store.base import Turn


@dataclass(frozen=True)
class Standing:
    """Where a session's text stands: whether anything was read, what is held back, and whose turn it is."""

    begun: bool
    open_text: str
    turn: Turn


@dataclass(frozen=True)
class Intake:
    """Tokens to journal now, and the session's standing afterwards."""

    tokens: list[int]
    open_text: str
    open_tokens: int
    turn: Turn


class TextReader:
    """Applies tokenizer and chat template. Its calls take long for long texts: never on the event loop."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def text(self, standing: Standing, text: str) -> Intake:
        """More text. Its end is held back until it is certain how it is cut into tokens, so that the cutting of a text
        into appends changes nothing."""
        settled, left = self._tokenizer.split_settled(standing.open_text + text)
        tokens = self._encode(settled, begun=standing.begun) if settled else []
        open_tokens = len(self._encode(left, begun=standing.begun or bool(tokens))) if left else 0
        return Intake(tokens, left, open_tokens, _after_text(standing.turn))

    def messages(self, standing: Standing, messages: Sequence[ChatMessage]) -> Intake:
        """Chat messages, each turn closed as the model's template has it."""
        tokens = self._flushed(standing)
        tokens += self._chat(standing, tokens, messages, prompt=False)
        return Intake(tokens, "", 0, "asked" if messages[-1].role == "user" else "none")

    def prompt(self, standing: Standing, prompt: str | None, messages: Sequence[ChatMessage] | None) -> Intake:
        """All that comes before a generation. Without prompt and messages it goes on where the session stands: with the
        assistant's turn if the user's message came last, else with the text itself."""
        if messages is not None or (prompt is None and standing.turn == "asked"):
            tokens = self._flushed(standing)
            tokens += self._chat(standing, tokens, messages or (), prompt=True)
            return Intake(tokens, "", 0, "open")
        whole = standing.open_text + (prompt or "")
        tokens = self._encode(whole, begun=standing.begun) if whole else []
        return Intake(tokens, "", 0, _after_text(standing.turn) if prompt else standing.turn)

    def _flushed(self, standing: Standing) -> list[int]:
        return self._encode(standing.open_text, begun=standing.begun) if standing.open_text else []

    def _encode(self, text: str, *, begun: bool) -> list[int]:
        try:
            return self._tokenizer.encode(text, start=not begun)
        except TokenizerError as error:
            raise InvalidRequest(str(error), param="text") from error

    def _chat(
        self, standing: Standing, flushed: list[int], messages: Sequence[ChatMessage], *, prompt: bool
    ) -> list[int]:
        turn = "none" if standing.turn == "asked" else standing.turn
        first = not standing.begun and not flushed and bool(messages)
        try:
            return self._tokenizer.encode_chat(
                [message.model_dump() for message in messages],
                turn=turn,
                first=first,
                add_generation_prompt=prompt,
            )
        except TokenizerError as error:
            raise InvalidRequest(str(error), param="messages") from error


def _after_text(turn: Turn) -> Turn:
    """Raw text inside an open turn belongs to it; otherwise nothing is left to close."""
    return "open" if turn == "open" else "none"
