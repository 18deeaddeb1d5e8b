"""The decoder: tokens and a state in, logits and the next state out."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import native
from models.asked import Asked, Far, of_heads
from models.attention import attend, attend_beside, attend_jointly
from models.config import ModelConfig, fingerprint
from models.layers import Head, Layer, Projected, Rotary, wide
from models.lora import AttentionLora
from models.memory.base import Memory
from models.memory.ring import Piece, Ring
from models.state import MemoryState, Spec, TensorSpec


class Weights(nn.Module):
    """A checkpoint's weights, which decoders over several memories may share. They ask for no gradient until told to."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Tensor], rope_factors: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        embedding = tensors["model.embed_tokens.weight"]
        self.embedding = nn.Parameter(embedding, requires_grad=False)
        norm = nn.Parameter(tensors["model.norm.weight"], requires_grad=False)
        tied = config.tie_word_embeddings
        matrix = self.embedding if tied else nn.Parameter(tensors["lm_head.weight"], requires_grad=False)
        self.head = Head(norm, matrix, config.rms_norm_eps)
        self.layers = nn.ModuleList(
            Layer(config, tensors, f"model.layers.{index}") for index in range(config.num_layers)
        )
        self.rotary = Rotary(config, embedding.device, rope_factors, embedding.dtype)

    def layer(self, index: int) -> Layer:
        """One layer. Raises `IndexError` where there is none."""
        layer = self.layers[index]
        assert isinstance(layer, Layer)
        return layer

    def loras(self) -> dict[int, AttentionLora]:
        """The adaptations that are not merged, by layer."""
        found = {index: self.layer(index).lora for index in range(len(self.layers))}
        return {index: lora for index, lora in found.items() if lora is not None}

    def with_layers(self, changed: Mapping[int, Layer], head: nn.Module | None = None) -> Weights:
        """The same weights but for some layers, by index, and the head, if one is given; nothing is copied."""
        weights = copy.copy(self)
        layers = [changed.get(index, layer) for index, layer in enumerate(self.layers)]
        weights._modules = {**self._modules, "layers": nn.ModuleList(layers), "head": head or self.head}
        return weights


@dataclass(frozen=True)
class _Stack:
    """Neighbouring layers; `joined` if tokens can go through all of them in one native call."""

    begin: int
    end: int
    joined: native.Stack | None = None

    def takes(self, places: Sequence[native.Places]) -> bool:
        """Whether they can now: where something leaves the ring, what it is worth must be known before."""
        worth = [step.folding.worth for step in places if step.folding is not None]
        return self.joined is not None and not (self.joined.keeps and any(one is None for one in worth))


class Decoder(nn.Module):
    """A Llama-architecture decoder over one memory mechanism.

    The residual stream stays in float32 whatever the weights are: this family's residuals reach magnitudes of 10^4, where
    bfloat16 keeps two digits. (float64 weights, which only tests have, widen everything.)
    """

    def __init__(self, weights: Weights, memory: Memory) -> None:
        super().__init__()
        self.weights, self.config = weights, weights.config
        self.dtype, self.device = weights.embedding.dtype, weights.embedding.device
        self.memory = memory.to(self.device)
        self.memory_learns = False
        """Whether what is written keeps its gradients where the rest of a call does not."""
        self.recompute = False
        """Whether a backward pass computes the feed-forward networks again instead of keeping what they went through."""
        self._ring = Ring(
            self.config,
            memory.config,
            weights.rotary,
            self.dtype,
            memory.lookahead,
            memory.follows,
            memory.looks_back,
            memory.beginnings,
        )
        far = torch.tensor([[memory.config.window]], device=self.device)
        self._far_cos, self._far_sin = weights.rotary.table(far)
        self._stacks = self._stacked()

    def spec(self) -> Spec:
        """Every tensor of a session's state. `hidden` is the last token's output, from which the next token is read."""
        hidden = TensorSpec((self.config.hidden_size,), wide(self.dtype))
        return {**self._ring.spec(), "hidden": hidden, **self.memory.spec()}

    def empty_state(self, batch: int = 1) -> MemoryState:
        """B sessions that have read nothing, on the model's device."""
        return MemoryState.empty(self.spec(), batch, self.device)

    def memory_fingerprint(self) -> str:
        """Names the kind of state this decoder reads and writes: mechanism, settings, learned parameters, every shape."""
        shapes = {name: [list(t.shape), str(t.dtype)] for name, t in self.spec().items()}
        parts = [type(self.memory).__name__, self.memory.config, shapes]
        learned = hashlib.sha256()
        for name, tensor in self.memory.state_dict().items():
            learned.update(name.encode())
            learned.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        if self.memory.state_dict():
            parts.append(learned.hexdigest())
        return fingerprint(*parts)

    def forward(
        self, tokens: Tensor, state: MemoryState, *, logits: Literal["last", "all"] = "last"
    ) -> tuple[Tensor, MemoryState]:
        """Take tokens (B, T) in. Returns wide logits (B, V), or (B, T, V) for `all`, and the state, which was consumed.

        Rows may stand at different positions; any cutting of the same tokens into calls gives the same state.
        """
        hidden, state = self.run(tokens, state)
        return self.read_out(hidden if logits == "all" else hidden[:, -1]), state

    def run(self, tokens: Tensor, state: MemoryState) -> tuple[Tensor, MemoryState]:
        """As `forward`, up to the hidden outputs (B, T, D), wide: `read_out` of those that matter gives logits."""
        return self._run_in_parts(tokens, state, self.config.num_layers)

    def read_through(self, tokens: Tensor, state: MemoryState, ahead: int) -> MemoryState:
        """Take tokens (B, T) in that at least `ahead` others will follow before anything is asked, saved or copied.

        Layers above the memory's last one see a ring's length back each. What they compute farther from the end than as many
        rings as there are layers from them on is never seen, and left out. Then the state is that of `run` once the others have
        been taken in, and not before.
        """
        depth, count, ring = self.memory.config.depth(self.config), self.config.num_layers, self.memory.config.ring
        # The first eviction stores the sinks of every layer.
        begun = min(state.positions) >= ring
        return self._run_in_parts(tokens, state, max(depth, count - ahead // ring) if begun else count)[1]

    def step(self, tokens: Tensor, state: MemoryState) -> Tensor:
        """Wide logits (B, V) behind one token (B, 1) each, none of which completes a segment; the state changes as in `forward`.

        Nothing in it waits for the device or hangs on what is there: it does the same for all sessions at all times, and can be
        recorded (`models/recorded.py`). Only of a memory that is `still`.
        """
        assert self.memory.still
        piece, positions = self._ring.unasked(tokens, state), state.read("position")[:, None]
        cos, sin = self.weights.rotary.table(positions)
        x = F.embedding(tokens, self.weights.embedding).to(wide(self.dtype))
        for index in range(self.config.num_layers):
            x = self._layer(index, x, cos, sin, [piece], state)
            if index == self.memory.listens:
                self.memory.hear(x, positions, state)
        state.write("position", positions[:, 0] + 1)
        state.write("hidden", x[:, -1])
        return self.read_out(x[:, -1])

    def _run_in_parts(self, tokens: Tensor, state: MemoryState, depth: int) -> tuple[Tensor, MemoryState]:
        if self.memory.listens is None:
            return self._run(tokens, state, depth)
        parts = -(-tokens.shape[1] // self.memory.config.window)
        outputs = []
        for part in tokens.split(-(-tokens.shape[1] // parts), dim=1):
            hidden, state = self._run(part, state, depth)
            outputs.append(hidden)
        return torch.cat(outputs, dim=1), state

    def _run(self, tokens: Tensor, state: MemoryState, depth: int) -> tuple[Tensor, MemoryState]:
        pieces = self._ring.plan(tokens, state)
        length = tokens.shape[1]
        start = torch.tensor(pieces[0].positions, device=tokens.device)[:, None]  # (B, 1)
        positions = start + torch.arange(length, device=tokens.device)
        cos, sin = self.weights.rotary.table(positions)
        places = self._places(pieces, state) if state.in_place and any(stack.joined for stack in self._stacks) else []
        x = F.embedding(tokens, self.weights.embedding).to(wide(self.dtype))  # (B, T, D)
        for stack in self._stacks:
            if stack.begin >= depth:
                break
            end = min(stack.end, depth)
            if places and stack.takes(places):
                x = self._through(stack, end, x, pieces, places, state)
            else:
                for index in range(stack.begin, end):
                    x = self._layer(index, x, cos, sin, pieces, state)
            if end - 1 == self.memory.listens:
                self.memory.hear(x, positions, state)
        state.write("position", positions[:, -1] + 1)
        state.write("hidden", x[:, -1])
        return x, state

    def read_out(self, hidden: Tensor) -> Tensor:
        """Wide logits (..., V) of hidden outputs (..., D)."""
        logits: Tensor = self.weights.head(hidden)
        return logits

    def _stacked(self) -> list[_Stack]:
        """The layers, cut behind those that the memory listens to, and around those whose memory only `Memory.read` can say."""
        memory, count = self.memory, self.config.num_layers
        keeps = memory.keeps()
        alone = [index for index in range(count) if memory.reads(index) and keeps is None]
        cuts = {0, count, *alone, *(index + 1 for index in alone)}
        if memory.listens is not None:
            cuts.add(memory.listens + 1)
        stacks = []
        for begin, end in pairwise(sorted(cuts)):
            dense = [layer.dense for layer in map(self.weights.layer, range(begin, end)) if layer.dense is not None]
            plain = len(dense) == end - begin and begin not in alone
            far, sinks = (self._far_cos, self._far_sin), memory.config.sinks
            one = native.Stack(begin, dense, keeps, far, sinks, memory.looks_back) if plain else None
            stacks.append(_Stack(begin, end, one))
        return stacks

    def _places(self, pieces: Sequence[Piece], state: MemoryState) -> list[native.Places]:
        """Where the sessions of each piece stand."""
        found = []
        for piece in pieces:
            start = torch.tensor(piece.positions, device=state.device)[:, None]
            around = torch.arange(-self.memory.looks_back, piece.end - piece.begin, device=state.device)
            cos, sin = self.weights.rotary.table((start + around).clamp_min(0))
            folding, fold = None, piece.fold
            if fold is not None:
                worth = self.memory.worth(fold.state, fold.starts, fold.counted)
                folding = native.Folding(fold, fold.rows, worth)
            assert not isinstance(piece.folded, Tensor)
            kept = self.memory.kept(piece.folded)
            found.append(native.Places(piece.positions, piece.folded, kept, cos, sin, folding))
        return found

    def _through(
        self,
        stack: _Stack,
        end: int,
        x: Tensor,
        pieces: Sequence[Piece],
        places: Sequence[native.Places],
        state: MemoryState,
    ) -> Tensor:
        """x (B, T, D) through the layers of a stack up to `end`, natively. It may be overwritten."""
        assert stack.joined is not None
        parts = [x[:, piece.begin : piece.end].contiguous() for piece in pieces]
        steps = list(zip(parts, places, strict=True))
        # What has been completed is looked at before the next piece comes.
        together = [steps] if all(piece.finish is None for piece in pieces) else [[step] for step in steps]
        for number, some in enumerate(together):
            stack.joined.run(some, state, end - stack.begin)
            for index in range(stack.begin, end):
                self._finish(index, pieces[number])
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _layer(
        self, index: int, x: Tensor, cos: Tensor, sin: Tensor, pieces: list[Piece], state: MemoryState
    ) -> Tensor:
        """x (B, T, D) through one layer. It may be overwritten."""
        layer = self.weights.layer(index)
        found = self._attention(index, layer.begin(x, cos, sin), pieces, state)
        # Attention is kept when others are computed again: it writes into the state, and must not do so twice.
        return layer.end(x, found, self.recompute)

    def _attention(
        self,
        index: int,
        asked: Projected,
        pieces: list[Piece],
        state: MemoryState,
    ) -> Tensor:
        """What the heads of a layer find, (B, H, T, d)."""
        outs = []
        for piece in pieces:
            span = slice(piece.begin, piece.end)
            self._ring.write(index, piece.places, asked.key[:, :, span], asked.value[:, :, span], state)
            outs.append(self._attend(index, piece, asked.query[:, :, span], asked.near_query[:, :, span], state))
            with torch.set_grad_enabled(torch.is_grad_enabled() or self.memory_learns):
                self._write(index, piece, asked.query[:, :, span])
        out = torch.cat(outs, dim=3) if len(outs) > 1 else outs[0]  # (B, K, G, T, d)
        return out.flatten(1, 2)

    def _write(self, index: int, piece: Piece, query: Tensor) -> None:
        """Give the memory what a piece has completed, and what it has driven out of the ring; for its losses it wants to see the
        piece's queries (B, H, t, d)."""
        self._finish(index, piece)
        if piece.fold is not None and not self.memory.reads(index):
            self._ring.move_sinks(index, piece.fold)
        elif piece.fold is not None:
            evicted = self._ring.evict(index, piece.fold)
            if self.memory.losses is not None:
                groups = (self.config.num_kv_heads, self.config.queries_per_kv)
                evicted = replace(evicted, queries=query.unflatten(1, groups))
            self.memory.fold(index, piece.fold.state, evicted)

    def _finish(self, index: int, piece: Piece) -> None:
        if piece.finish is not None:
            finished = self._ring.finished(index, piece.finish)
            self.memory.finish(index, self.weights.layer(index), piece.finish.state, finished)

    def _attend(self, index: int, piece: Piece, query: Tensor, near_query: Tensor, state: MemoryState) -> Tensor:
        kv_heads, groups = self.config.num_kv_heads, self.config.queries_per_kv
        keys, values = state.read("ring_keys", index), state.read("ring_values", index)
        asked = Asked(
            plain=query.unflatten(1, (kv_heads, groups)),  # (B, K, G, t, d)
            near=near_query.unflatten(1, (kv_heads, groups)),
            cos=self._far_cos,
            sin=self._far_sin,
            folded=piece.folded,
            finished=piece.finished,
            recent=partial(self._ring.recent, index, piece.behind, state) if piece.behind is not None else None,
            around=self._ring.around(index, piece.behind, state) if piece.behind is not None else None,
            positions=piece.positions,
        )
        found = self.memory.read(index, state, asked)
        if found is None:
            return attend(asked.near, keys, values, piece.bias)
        chosen = found.heads
        if isinstance(found, Far):
            far_query = of_heads(asked.far, chosen) if found.query is None else found.query
            if native.suits_jointly(asked.near, keys, values, far_query, found):
                return native.attend_jointly(asked.near, keys, values, piece.bias, far_query, found)
        near, near_keys, near_values = (of_heads(x, chosen) for x in (asked.near, keys, values))
        if isinstance(found, Far):
            joined = attend_jointly(near, near_keys, near_values, piece.bias, far_query, found)
        else:
            joined = attend_beside(near, near_keys, near_values, piece.bias, found)
        others = [head for head in range(kv_heads) if head not in chosen]
        if not others:
            return joined
        near, near_keys, near_values = (of_heads(x, others) for x in (asked.near, keys, values))
        parts = dict(zip(others, attend(near, near_keys, near_values, piece.bias).unbind(1), strict=True))
        parts |= zip(chosen, joined.unbind(1), strict=True)
        return torch.stack([parts[head] for head in range(kv_heads)], dim=1)
