"""What a Llama-architecture checkpoint must hold, whatever format it comes in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from models.config import ModelConfig
from models.errors import CheckpointError
from models.tokenizer import TokenizerSource


@dataclass(frozen=True)
class Contents:
    """A checkpoint as its format's reader hands it over. `digest` is a SHA-256 over the bytes of the
    weights, in hex; `rope_factors` (d/2,) divide the rotary frequencies when the file gives them as a
    tensor.
    """

    config: ModelConfig
    tensors: Mapping[str, torch.Tensor]
    tokenizer: TokenizerSource
    digest: str
    rope_factors: torch.Tensor | None = None


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, in Hugging Face's names."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    for index in range(config.num_layers):
        shapes |= {f"model.layers.{index}.{part}.weight": shape for part, shape in layer.items()}
    return shapes


def require_fit(found: Mapping[str, tuple[int, ...]], config: ModelConfig) -> None:
    """Raise `CheckpointError` naming every tensor that is missing, left over, or of another shape."""
    if config.num_layers > len(found):  # a damaged number must not make the list of names endless
        raise CheckpointError(
            f"the configuration has {config.num_layers} layers, the checkpoint {len(found)} tensors; "
            f"missing: at least {config.num_layers - len(found)}"
        )
    expected = expected_shapes(config)
    problems = [
        *_problem("missing", expected.keys() - found.keys()),
        *_problem("not known to this architecture", found.keys() - expected.keys()),
        *_problem(
            "of the wrong shape",
            (
                f"{name} {found[name]} instead of {expected[name]}"
                for name in found.keys() & expected.keys()
                if found[name] != expected[name]
            ),
        ),
    ]
    if problems:
        raise CheckpointError(
            "the checkpoint does not fit the Llama architecture its configuration describes: " + "; ".join(problems)
        )


def _problem(what: str, names: Iterable[str]) -> list[str]:
    listed = sorted(names)
    if not listed:
        return []
    more = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
    return [f"{what}: {', '.join(listed[:8])}{more}"]
