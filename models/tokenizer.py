"""Text to tokens and back, for raw text and for chats."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as Backend

from models.chat import ChatTemplate, Messages, Turn
from models.errors import TokenizerError
from models.special_tokens import Hidden, SpecialTokens
from models.text_stream import TextStream as TextStream
from models.token_bytes import TokenBytes

_WELL_KNOWN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "</s>",
)
"""Special tokens that end a turn or a text in every model that has them, whether its files say so or not."""
_ENDS = ".!?\n。！？"


@dataclass(frozen=True)
class TokenizerSource:
    """What a checkpoint says about its tokenizer, in plain values.

    `tokenizer_json` is in the format of the `tokenizers` library. `adds_bos` None means: as its
    post-processor does. `vocab_size` is the number of rows of the model's embedding.
    """

    tokenizer_json: str
    vocab_size: int
    chat_template: str | None = None
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    unk_token: str | None = None
    eos_ids: tuple[int, ...] = ()
    adds_bos: bool | None = None


class Tokenizer:
    """Encodes and decodes. User text can never become a special token; only a chat template writes those."""

    def __init__(self, source: TokenizerSource) -> None:
        description = _parse(source.tokenizer_json)
        self._bare = _without_prefix(description)
        self._has_prefix = self._bare != description
        self._prefixes_every_run = _prefixes_every_run(description)
        whole = json.dumps(description)
        self._special_text = _load(whole)
        self._plain_text = _load(whole, special=False)
        self._plain_going_on = _load(json.dumps(self._bare), special=False) if self._has_prefix else self._plain_text
        self.vocab_size = self._special_text.get_vocab_size(with_added_tokens=True)
        if self.vocab_size > source.vocab_size:
            raise TokenizerError(
                f"the tokenizer has {self.vocab_size} tokens but the model only {source.vocab_size}; "
                "they do not belong together"
            )
        self._bytes = TokenBytes(self._special_text, description.get("decoder"))
        self._cutter = self._bytes.cutter()
        self._special = SpecialTokens(self._special_text)
        self.bos_id = self._id_of(source.bos_token)
        self.adds_bos = self._adds_bos(source.adds_bos)
        self.eos_ids = self._end_ids(source)
        self._chat = _chat_template(source)

    @classmethod
    def of(cls, source: TokenizerSource) -> Tokenizer:
        """Build from what a checkpoint carries. Raises `TokenizerError` when that cannot be used."""
        return cls(source)

    def encode(self, text: str, *, start: bool = True) -> list[int]:
        """Tokens of user text; names of special tokens in it are plain text.

        `start=False` goes on where earlier text ended: no BOS and no leading blank of SentencePiece. With
        `start` a BOS comes first if the tokenizer adds one, even to no text. A run of more than 4,096
        characters without a place to cut is cut by force (see `models.settled`).
        """
        ids = [self.bos_id] if start and self.adds_bos and self.bos_id is not None else []
        for piece in self._cutter.forced_pieces(text):
            ids += self._encode_plain(piece, start=start)
            start = False
        return ids

    def encode_template(self, rendered: str) -> list[int]:
        """Tokens of a rendered chat template: special tokens are recognised, and no BOS is added to what
        it holds.
        """
        return self._encode(self._special_text, rendered)

    def encode_chat(self, messages: Messages, *, turn: Turn, first: bool, add_generation_prompt: bool) -> list[int]:
        """Tokens of chat messages; special tokens come from the template, never from the messages.

        `first`: the conversation begins here (whole template, with its default system prompt). Otherwise
        the messages go on behind an assistant's turn that is closed according to `turn`. Equal to encoding
        the rendered text whole, as long as the messages do not name special tokens.
        """
        chat = self._require_chat()
        hidden = self._special.hide(messages)
        if first:
            sampled, text = "", chat.render(hidden.messages, add_generation_prompt=add_generation_prompt)
        else:
            sampled, closing = chat.closing(turn, self._end_texts())
            text = closing + chat.delta(hidden.messages, add_generation_prompt=add_generation_prompt)
        start = first or bool(sampled)
        if not hidden.literals and (start or not self._has_prefix):
            ids = self.encode_template(sampled + text)
        else:
            ids = self._encode_hidden(sampled + text, hidden, start=start)
        return ids[1:] if sampled else ids

    def render(self, messages: Messages, *, add_generation_prompt: bool) -> str:
        """The model's chat template over all messages."""
        return self._require_chat().render(messages, add_generation_prompt=add_generation_prompt)

    def continuation(self, messages: Messages, *, turn: Turn, add_generation_prompt: bool) -> str:
        """What messages add to a conversation whose history is not kept.

        `turn` says how the assistant's last turn stands: "open", its end token was never written; "ended",
        the model sampled it; "none", there is nothing to close.
        """
        chat = self._require_chat()
        _, closing = chat.closing(turn, self._end_texts())
        return closing + chat.delta(messages, add_generation_prompt=add_generation_prompt)

    def split_settled(self, text: str) -> tuple[str, str]:
        """Cut arriving text into (settled, open): settled text has the same tokens whatever follows.

        Put the open part in front of the text that arrives next. However a text is cut into arrivals,
        encoding the settled parts in turn (`start` for the first only) gives the tokens of the whole.
        """
        return self._cutter.split(text)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of tokens; bytes that form no character become U+FFFD."""
        return self._special_text.decode(list(ids), skip_special_tokens=skip_special)

    def token_text(self, token_id: int) -> str:
        """One token by itself, special ones by name; part of a character is shown as U+FFFD."""
        special = self._special.text_of(token_id)
        return self.token_bytes(token_id).decode("utf-8", "replace") if special is None else special

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes a token stands for, maybe part of a character. Special and unused ids have none."""
        return b"" if self._special.text_of(token_id) is not None else self._bytes.of(token_id)

    @property
    def sentence_ends(self) -> tuple[int, ...]:
        """Ids of the tokens that end a sentence, a line or a turn: special ones, and those with a full stop or the like in them."""
        texts = ((token, self.token_bytes(token).decode("utf-8", "replace")) for token in range(self.vocab_size))
        return tuple(token for token, text in texts if not text or any(end in text for end in _ENDS))

    def _require_chat(self) -> ChatTemplate:
        if self._chat is None:
            raise TokenizerError("this model has no chat template; send plain text instead of messages")
        return self._chat

    def _encode_plain(self, text: str, *, start: bool) -> list[int]:
        return self._encode(self._plain_text if start else self._plain_going_on, text)

    @staticmethod
    def _encode(backend: Backend, text: str) -> list[int]:
        try:
            return backend.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise TokenizerError(f"the text is not valid Unicode: {error}") from error

    def _encode_hidden(self, text: str, hidden: Hidden, *, start: bool) -> list[int]:
        """Encode run by run between the template's special tokens, with what was hidden as plain text
        again.
        """
        ids: list[int] = []
        for run, special in self._special.runs(text):
            plain = hidden.reveal(run)
            if plain:
                ids += self._encode_plain(plain, start=start)
            if special is not None:
                ids.append(special)
            start = self._prefixes_every_run if special is not None else start
        return ids

    def _adds_bos(self, told: bool | None) -> bool:
        if self.bos_id is None:
            return False
        return self.bos_id in self._special_text.encode("").ids if told is None else told

    def _id_of(self, token: str | None) -> int | None:
        return None if token is None else self._special_text.token_to_id(token)

    def _end_ids(self, source: TokenizerSource) -> frozenset[int]:
        known = {self._special.id_of(text) for text in _WELL_KNOWN_ENDS}
        ids = known | {self._id_of(source.eos_token), *source.eos_ids}
        return frozenset(token_id for token_id in ids if token_id is not None)

    def _end_texts(self) -> list[str]:
        return [text for token_id in self.eos_ids if (text := self._special.text_of(token_id))]


def _parse(tokenizer_json: str) -> dict[str, Any]:
    try:
        description = json.loads(tokenizer_json)
    except ValueError as error:
        raise TokenizerError(f"the tokenizer is not valid JSON: {error}") from error
    if not isinstance(description, dict):
        raise TokenizerError("the tokenizer must be a JSON object as the tokenizers library writes it")
    return {**description, "truncation": None, "padding": None}


def _load(tokenizer_json: str, *, special: bool = True) -> Backend:
    try:
        backend = Backend.from_str(tokenizer_json)
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerError(f"the tokenizer cannot be built: {error}") from error
    backend.encode_special_tokens = not special
    return backend


def _without_prefix(description: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer without the blank that some put in front of a text."""
    return {
        **description,
        "normalizer": _strip_prefix(description.get("normalizer")),
        "pre_tokenizer": _strip_prefix(description.get("pre_tokenizer")),
    }


def _strip_prefix(step: Any) -> Any:
    if not isinstance(step, dict):
        return step
    if step.get("type") == "Prepend":
        return None
    changed = dict(step)
    for key in ("normalizers", "pretokenizers"):
        if key in changed:
            inner = (_strip_prefix(each) for each in changed[key])
            changed[key] = [each for each in inner if each is not None]
    if changed.get("type") == "Metaspace":
        changed["prepend_scheme"] = "never"
        changed.pop("add_prefix_space", None)
    elif "add_prefix_space" in changed:
        changed["add_prefix_space"] = False
    return changed


def _prefixes_every_run(description: Mapping[str, Any]) -> bool:
    """Whether the blank also comes behind special tokens, not only at the very beginning."""
    steps = json.dumps([description.get("normalizer"), description.get("pre_tokenizer")])
    return '"prepend_scheme": "first"' not in steps


def _chat_template(source: TokenizerSource) -> ChatTemplate | None:
    if source.chat_template is None:
        return None
    names: Sequence[str] = ("bos_token", "eos_token", "pad_token", "unk_token")
    values = {name: getattr(source, name) for name in names}
    return ChatTemplate(source.chat_template, {name: text for name, text in values.items() if text is not None})
