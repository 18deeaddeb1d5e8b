"""Chat templates: messages as the text a model was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from models.errors import TokenizerError

Turn = Literal["none", "open", "ended"]
Messages = Sequence[Mapping[str, str]]

_QUESTION, _ANSWER = "anchorquestion", "anchoranswer"
_ANCHOR: Messages = (
    {"role": "user", "content": _QUESTION},
    {"role": "assistant", "content": _ANSWER},
)
"""The conversation that a continuation is rendered behind, because the real one is no longer known."""


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's text for training; here it has no effect."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A model's own template, run in a sandbox with the helpers that Hugging Face promises to templates.

    `special` are the names templates may use: bos_token, eos_token, pad_token, unk_token.
    """

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise TokenizerError(f"the model's chat template cannot be read: {error}") from error
        self._special = dict(special)

    def render(self, messages: Messages, *, add_generation_prompt: bool) -> str:
        """The whole text. Raises `TokenizerError` with the template's words when it refuses the messages."""
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self._special,
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise TokenizerError(f"the model's chat template refuses these messages: {error}") from error

    def delta(self, messages: Messages, *, add_generation_prompt: bool) -> str:
        """What the messages add behind a closed assistant's turn."""
        before = self.render(_ANCHOR, add_generation_prompt=False)
        whole = self.render([*_ANCHOR, *messages], add_generation_prompt=add_generation_prompt)
        if not whole.startswith(before):
            raise TokenizerError(
                "this model's chat template rewrites earlier turns, so messages cannot be added one by one; "
                "send them as plain text instead"
            )
        return whole[len(before) :]

    def closing(self, turn: Turn, ends: Sequence[str]) -> tuple[str, str]:
        """Close an assistant's turn: (the end token that the model has already sampled or "", text still
        missing).

        `ends` are the texts of the model's end tokens.
        """
        if turn == "none":
            return "", ""
        rendered = self.render(_ANCHOR, add_generation_prompt=False)
        _, answer, tail = rendered.rpartition(_ANSWER)
        if not answer:
            raise TokenizerError("this model's chat template leaves the assistant's words out; send plain text instead")
        if turn == "open":
            return "", tail
        found = [(at, -len(end), end) for end in ends if end and (at := tail.find(end)) >= 0]
        if not found:
            return "", tail
        at, _, end = min(found)
        return end, tail[at + len(end) :]


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
