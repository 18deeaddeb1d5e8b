"""A checkpoint as a model of transformers, for what is measured beside ours."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from models.weights.checkpoint import Checkpoint


def of_transformers(checkpoint: Checkpoint) -> Any:
    """The same weights as a model of transformers, in the checkpoint's dtype."""
    config = checkpoint.config
    theirs: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            max_position_embeddings=config.trained_context,
            tie_word_embeddings=config.tie_word_embeddings,
        )
    )
    missing, unexpected = theirs.load_state_dict(dict(checkpoint.tensors), strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    theirs.tie_weights()
    return theirs.to(checkpoint.tensors["model.embed_tokens.weight"].dtype).eval()
