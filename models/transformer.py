"""The decoder: tokens and a state in, logits and the next state out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import ModelConfig, fingerprint
from models.layers import Rotary, attend, attend_jointly, rms_norm, rotate
from models.memory.base import Memory
from models.memory.ring import Piece, Ring
from models.state import MemoryState, Spec, TensorSpec


class Layer(nn.Module):
    """Weights of one decoder layer, projections that read the same input fused."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Tensor], prefix: str) -> None:
        super().__init__()

        def weight(*names: str) -> nn.Parameter:
            parts = [tensors[f"{prefix}.{name}.weight"] for name in names]
            return nn.Parameter(torch.cat(parts) if len(parts) > 1 else parts[0], requires_grad=False)

        self.qkv = weight("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        self.out = weight("self_attn.o_proj")
        self.gate_up = weight("mlp.gate_proj", "mlp.up_proj")
        self.down = weight("mlp.down_proj")
        self.attention_norm = weight("input_layernorm")
        self.mlp_norm = weight("post_attention_layernorm")


class Decoder(nn.Module):
    """A Llama-architecture decoder over one memory mechanism.

    The residual stream stays in float32 whatever the weights are: this family's residuals reach magnitudes of 10^4, where
    bfloat16 keeps two digits.
    """

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, Tensor],
        memory: Memory,
        *,
        rope_factors: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.config, self.memory = config, memory
        embedding = tensors["model.embed_tokens.weight"]
        self.dtype, self.device = embedding.dtype, embedding.device
        self.embedding = nn.Parameter(embedding, requires_grad=False)
        self.norm = nn.Parameter(tensors["model.norm.weight"], requires_grad=False)
        head = embedding if config.tie_word_embeddings else tensors["lm_head.weight"]
        self.head = self.embedding if config.tie_word_embeddings else nn.Parameter(head, requires_grad=False)
        self.layers = nn.ModuleList(
            Layer(config, tensors, f"model.layers.{index}") for index in range(config.num_layers)
        )
        self._rotary = Rotary(config, self.device, rope_factors)
        self._ring = Ring(config, memory.config, self._rotary, self.dtype, memory.lookahead)
        far = torch.tensor([[memory.config.window]], device=self.device)
        self._far_cos, self._far_sin = self._rotary.table(far)

    def spec(self) -> Spec:
        """Every tensor of a session's state. `hidden` is the last token's output, from which the next token is read."""
        hidden = TensorSpec((self.config.hidden_size,), torch.float32)
        return {**self._ring.spec(), "hidden": hidden, **self.memory.spec()}

    def empty_state(self, batch: int = 1) -> MemoryState:
        """B sessions that have read nothing, on the model's device."""
        return MemoryState.empty(self.spec(), batch, self.device)

    def memory_fingerprint(self) -> str:
        """Names the kind of state this decoder reads and writes: mechanism, its settings and every tensor's shape."""
        shapes = {name: [list(t.shape), str(t.dtype)] for name, t in self.spec().items()}
        return fingerprint(type(self.memory).__name__, self.memory.config, shapes)

    def forward(
        self, tokens: Tensor, state: MemoryState, *, logits: Literal["last", "all"] = "last"
    ) -> tuple[Tensor, MemoryState]:
        """Take tokens (B, T) in. Returns float32 logits (B, V), or (B, T, V) for `all`, and the state, which was consumed.

        Rows may stand at different positions; any cutting of the same tokens into calls gives the same state.
        """
        pieces = self._ring.plan(tokens, state)
        position = state.read("position")  # (B,)
        length = tokens.shape[1]
        cos, sin = self._rotary.table(position[:, None] + torch.arange(length, device=tokens.device))
        x = F.embedding(tokens, self.embedding).float()  # (B, T, D)
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            x = x + self._attention(index, layer, x, cos, sin, pieces, state)
            x = x + self._mlp(layer, x)
        state.write("position", position + length)
        state.write("hidden", x[:, -1])
        return self.read_out(x if logits == "all" else x[:, -1]), state

    def read_out(self, hidden: Tensor) -> Tensor:
        """float32 logits (..., V) of hidden outputs (..., D)."""
        normed = rms_norm(hidden, self.norm, self.config.rms_norm_eps).to(self.dtype)
        return F.linear(normed, self.head).float()

    def _mlp(self, layer: Layer, x: Tensor) -> Tensor:
        normed = rms_norm(x, layer.mlp_norm, self.config.rms_norm_eps).to(self.dtype)
        gate, up = F.linear(normed, layer.gate_up).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, layer.down).float()

    def _attention(
        self,
        index: int,
        layer: Layer,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        pieces: list[Piece],
        state: MemoryState,
    ) -> Tensor:
        config = self.config
        batch, length, _ = x.shape
        normed = rms_norm(x, layer.attention_norm, config.rms_norm_eps).to(self.dtype)
        heads, kv_heads, size = config.num_heads, config.num_kv_heads, config.head_dim
        qkv = F.linear(normed, layer.qkv).view(batch, length, heads + 2 * kv_heads, size).transpose(1, 2)
        query, key, value = qkv.split((heads, kv_heads, kv_heads), dim=1)  # (B, H | K | K, T, d)
        near_query = rotate(query, cos, sin)
        key = rotate(key, cos, sin)
        outs = []
        for piece in pieces:
            span = slice(piece.begin, piece.end)
            state.write_at("ring_keys", index, piece.places, key[:, :, span])
            state.write_at("ring_values", index, piece.places, value[:, :, span])
            outs.append(self._attend(index, piece, query[:, :, span], near_query[:, :, span], state))
            if piece.fold is not None:
                self.memory.fold(index, piece.fold.state, self._ring.evict(index, piece.fold))
        out = torch.cat(outs, dim=3) if len(outs) > 1 else outs[0]  # (B, K, G, T, d)
        joined = out.flatten(1, 2).transpose(1, 2).reshape(batch, length, heads * size)
        return F.linear(joined, layer.out).float()

    def _attend(self, index: int, piece: Piece, query: Tensor, near_query: Tensor, state: MemoryState) -> Tensor:
        kv_heads, groups = self.config.num_kv_heads, self.config.queries_per_kv
        keys, values = state.read("ring_keys", index), state.read("ring_values", index)
        near_query = near_query.unflatten(1, (kv_heads, groups))  # (B, K, G, t, d)
        far = self.memory.read(index, state, piece.folded) if any(piece.folded) else None
        if far is None:
            return attend(near_query, keys, values, piece.bias)
        chosen = far.heads
        others = [head for head in range(kv_heads) if head not in chosen]
        out = torch.empty_like(near_query)
        if others:
            out[:, others] = attend(near_query[:, others], keys[:, others], values[:, others], piece.bias)
        # Stored keys carry no rotation: turning the query by W puts all of them at distance W.
        asking = query.unflatten(1, (kv_heads, groups))[:, chosen]
        asking = rotate(asking.flatten(1, 2), self._far_cos, self._far_sin).view_as(asking)
        out[:, chosen] = attend_jointly(
            near_query[:, chosen], keys[:, chosen], values[:, chosen], piece.bias, asking, far
        )
        return out
