"""A tokenizer from the metadata of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from models.errors import TokenizerError
from models.tokenizer import TokenizerSource

_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6
"""Values of tokenizer.ggml.token_type."""

_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def tokenizer_source(metadata: Mapping[str, Any], vocab_size: int) -> TokenizerSource:
    """What `Tokenizer.of` needs. Raises `TokenizerError` for a kind of tokenizer that is not supported."""
    tokens = _list(metadata, "tokens")
    kinds = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
        raise TokenizerError("the GGUF file's vocabulary is damaged: token types do not match, or tokens repeat")
    model = metadata.get("tokenizer.ggml.model")
    if model == "gpt2":
        backend = _byte_level(metadata, tokens)
    elif model == "llama":
        backend = _sentencepiece(metadata, tokens, kinds)
    else:
        raise TokenizerError(f"tokenizers of type {model!r} are not supported; only 'gpt2' and 'llama' are")
    _add_special(backend, tokens, kinds)
    ends = [metadata.get(f"tokenizer.ggml.{key}") for key in _END_KEYS]
    return TokenizerSource(
        tokenizer_json=backend.to_str(),
        chat_template=metadata.get("tokenizer.chat_template"),
        bos_token=_token(metadata, tokens, "bos_token_id"),
        eos_token=_token(metadata, tokens, "eos_token_id"),
        pad_token=_token(metadata, tokens, "padding_token_id"),
        unk_token=_token(metadata, tokens, "unknown_token_id"),
        eos_ids=tuple(end for end in ends if isinstance(end, int)),
        adds_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", _adds_bos_unless_told(metadata))),
        vocab_size=vocab_size,
    )


def _adds_bos_unless_told(metadata: Mapping[str, Any]) -> bool:
    """llama.cpp's defaults for files without the flag."""
    if metadata.get("tokenizer.ggml.model") == "llama":
        return True
    return metadata.get("tokenizer.ggml.pre") in ("llama-bpe", "llama3", "llama-v3")


def _byte_level(metadata: Mapping[str, Any], tokens: Sequence[str]) -> Backend:
    pre = metadata.get("tokenizer.ggml.pre", "default")
    backend = Backend(
        BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[_pair(merge) for merge in _list(metadata, "merges")],
            ignore_merges=pre in ("llama-bpe", "llama3", "llama-v3"),
        )
    )
    backend.pre_tokenizer = _pre_tokenizer(pre)
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend


def _pre_tokenizer(pre: str) -> pre_tokenizers.PreTokenizer:
    """How text is cut before merging, by llama.cpp's name for it."""
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    match pre:
        case "gpt-2" | "default":
            return gpt2
        case "smollm":
            return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
        case "llama-bpe" | "llama3" | "llama-v3":
            pattern = _words_pattern(digits="{1,3}")
        case "qwen2":
            pattern = _words_pattern(digits="")
        case _:
            raise TokenizerError(
                f"the pre-tokenizer {pre!r} is not supported; load the model from its safetensors folder, "
                "whose tokenizer.json says how it cuts text"
            )
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _words_pattern(digits: str) -> str:
    """The pattern of the cl100k family: contractions, words, runs of digits, punctuation, line ends,
    blanks.
    """
    alternatives = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        rf"\p{{N}}{digits}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
    return "|".join(alternatives)


def _sentencepiece(metadata: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int]) -> Backend:
    """SentencePiece's BPE: the pair whose union scores best is merged first, unknown characters become
    bytes.
    """
    vocab = {token: index for index, token in enumerate(tokens)}
    unknown = next((token for token, kind in zip(tokens, kinds, strict=True) if kind == _UNKNOWN), None)
    backend = Backend(
        BPE(
            vocab=vocab,
            merges=_merges_by_score(tokens, kinds, _list(metadata, "scores")),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", "▁")
    prefixed = metadata.get("tokenizer.ggml.add_space_prefix", True)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefixed else spaces
    steps: list[decoders.Decoder] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefixed else steps)
    return backend


def _merges_by_score(tokens: Sequence[str], kinds: Sequence[int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third, best score first. Control tokens take no part: text must not
    merge into them."""
    if len(scores) != len(tokens):
        raise TokenizerError("the GGUF file's vocabulary is damaged: it has not one score a token")
    plain = {
        token: score
        for token, kind, score in zip(tokens, kinds, scores, strict=True)
        if kind not in (_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE)
    }
    merges: list[tuple[str, str]] = []
    for token in sorted(plain, key=plain.__getitem__, reverse=True):
        cuts = ((token[:at], token[at:]) for at in range(1, len(token)))
        merges.extend(pair for pair in cuts if pair[0] in plain and pair[1] in plain)
    return merges


def _add_special(backend: Backend, tokens: Sequence[str], kinds: Sequence[int]) -> None:
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind in (_CONTROL, _UNKNOWN)]
    defined = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _USER_DEFINED]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    backend.add_tokens([AddedToken(token, normalized=False) for token in defined])


def _list(metadata: Mapping[str, Any], key: str) -> list[Any]:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list) or not value:
        raise TokenizerError(
            f"the GGUF file has no tokenizer.ggml.{key}; convert the model together with its tokenizer"
        )
    return value


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _token(metadata: Mapping[str, Any], tokens: Sequence[str], key: str) -> str | None:
    index = metadata.get(f"tokenizer.ggml.{key}")
    if index is None:
        return None
    if not isinstance(index, int) or not 0 <= index < len(tokens):
        raise TokenizerError(f"the GGUF file's tokenizer.ggml.{key} is {index!r}, which is no token of its vocabulary")
    return tokens[index]
