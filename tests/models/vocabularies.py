"""Small vocabularies of other kinds than the tiny model's, as GGUF files hold them."""

from __future__ import annotations

import json

from models.tokenizer import Tokenizer, TokenizerSource
from models.weights.gguf_tokenizer import tokenizer_source


def sentencepiece(*, prefix: bool = True) -> Tokenizer:
    """A small SentencePiece vocabulary as GGUF files hold it; the best merge has the highest score."""
    pieces = [*"▁abcdeol\n", "▁a", "ab", "▁ab", "lo", "▁▁", "<", "/", "s", ">", "</", "s>"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(pieces)]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(index) for index in range(len(pieces))],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": prefix,
        "tokenizer.chat_template": (
            "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]"
            "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
        ),
    }
    return Tokenizer.of(tokenizer_source(metadata, len(tokens)))


def byte_level(source: TokenizerSource, pre: str) -> Tokenizer:
    """The tiny vocabulary, with a merge of digits, as a GGUF file with another pre-tokenizer would hold it."""
    model = json.loads(source.tokenizer_json)["model"]
    tokens = [*sorted(model["vocab"], key=model["vocab"].__getitem__), "20"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": [*map(" ".join, model["merges"]), "2 0"],
    }
    return Tokenizer.of(tokenizer_source(metadata, len(tokens)))
