"""What slots learn to foretell: how much attention a token will get when somebody asks about what it says.

Facts and numbers are hidden in stretches of a book, the model reads each stretch with full attention and is asked for all of them,
and the attention of its answers is what `models.memory.importance.Learned` is fitted to. The objective is the cross-entropy
between that attention, spread over all tokens of a batch, and the softmax of the scores: a score is then the logarithm of the
attention to be expected, up to a constant.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.attention import attend
from models.config import MemoryConfig
from models.errors import ConfigError
from models.lessons import lessons
from models.load import weights_of
from models.memory.importance import Learned
from models.memory.ring import Piece
from models.memory.window import Window
from models.probes import Needle
from models.state import MemoryState
from models.tokenizer import Tokenizer
from models.transformer import Decoder
from models.weights.checkpoint import Checkpoint

LENGTH = 2048
"""Tokens of a stretch: what its facts compete with for attention."""
QUESTIONS = 10
"""Facts in each stretch."""
_SURE = 0.5
"""What the attention of a wrong answer counts beside that of a right one: it often looked at the right place all the same."""


class Hearing(Window):
    """A window that keeps what the model thought at each token."""

    heard: Tensor

    def hear(self, hidden: Tensor, positions: Tensor, state: MemoryState) -> None:
        """Keep it."""
        self.heard = hidden[0]


class Asking(Decoder):
    """A decoder with full attention that adds up where the answers of a question look."""

    answers: slice | None = None
    """The places of the call that predict the answer; None: nothing is watched."""

    def watch(self, length: int) -> None:
        """Begin anew with the first `length` places of the ring."""
        config = self.config
        self.mass = torch.zeros(config.num_layers, config.num_kv_heads, length, device=self.device)
        self.found = torch.zeros_like(self.mass)

    def _attend(self, index: int, piece: Piece, query: Tensor, near_query: Tensor, state: MemoryState) -> Tensor:
        config = self.config
        keys, values = state.read("ring_keys", index), state.read("ring_values", index)
        groups = near_query.unflatten(1, (config.num_kv_heads, config.queries_per_kv))
        if self.answers is not None:
            asking = groups[0, :, :, self.answers].float()  # (K, G, t, d)
            scores = torch.einsum("kgtd,knd->kgtn", asking, keys[0].float()) * config.head_dim**-0.5
            bias = piece.bias.view(1, config.queries_per_kv, -1, piece.bias.shape[-1])[:, :, self.answers]
            seen = (scores + bias.float()).softmax(-1)[..., : self.found.shape[-1]]
            self.found[index] = seen.amax(dim=(1, 2))  # a group looks where one of its heads does, once is enough
        return attend(groups, keys, values, piece.bias)


@dataclass(frozen=True)
class Attention:
    """What was seen of n stretches: hidden vectors (n, T, D), and the attention (n, T, R) that later answers paid, by head."""

    hidden: Tensor
    mass: Tensor
    right: float
    """The share of questions that the model answered right."""


def watch_answers(
    checkpoint: Checkpoint,
    book: Sequence[int],
    heads: Sequence[tuple[int, int]],
    listens: int,
    stretches: int,
    seed: int,
    say: Callable[[str], None],
) -> Attention:
    """Read and ask. `book` are tokens; `heads` (layer, key/value head), R of them. Raises `ConfigError` for a short book."""
    if len(book) < 2 * LENGTH:
        raise ConfigError(f"the book has {len(book)} tokens; at least {2 * LENGTH} are needed")
    tokenizer, source = Tokenizer.of(checkpoint.tokenizer), random.Random(seed)
    memory = Hearing(checkpoint.config, _all_of_it(), checkpoint.tensors["model.embed_tokens.weight"].dtype)
    memory.listens = listens
    decoder = Asking(weights_of(checkpoint), memory)
    layers, groups = zip(*heads, strict=True)
    hidden, mass, right = [], [], 0
    for number in range(stretches):
        facts = lessons(source, QUESTIONS)
        tokens, _ = hide(tokenizer, book, [fact.sentence for fact in facts], LENGTH, source)
        with torch.inference_mode():
            state = decoder.empty_state()
            decoder(torch.tensor([tokens], device=decoder.device), state)
            heard = memory.heard
            decoder.watch(LENGTH + memory.config.sinks)
            right += sum(_ask(decoder, tokenizer, state, fact) for fact in facts)
        sinks = memory.config.sinks  # their places come first in the ring, and the first tokens are what they are
        begun = slice(2 * sinks, None)
        hidden.append(heard[sinks:].to(torch.bfloat16))
        mass.append(decoder.mass[list(layers), list(groups)][:, begun].T)
        if number % 10 == 9:
            say(f"{number + 1} of {stretches} stretches read and asked about")
    return Attention(torch.stack(hidden), torch.stack(mass), right / (stretches * QUESTIONS))


def fit(attention: Attention, importance: Learned, seed: int, epochs: int = 12, batch: int = 4) -> float:
    """Teach `importance` the attention; gives back the share of it that a tenth of the tokens would keep."""
    generator = torch.Generator().manual_seed(seed)
    device, count = importance.down.device, len(attention.hidden)
    with torch.no_grad():
        importance.down.normal_(0, importance.down.shape[1] ** -0.5, generator=generator)
        importance.up.normal_(0, 0.05, generator=generator)
    parameters = list(importance.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.05)
    steps = epochs * -(-count // batch)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
    for _ in range(epochs):
        for rows in torch.randperm(count, generator=generator).split(batch):
            scores = importance(attention.hidden[rows].to(device).float()).flatten(0, 1)
            paid = attention.mass[rows].to(device).flatten(0, 1)
            wanted = paid / paid.sum(dim=0).clamp_min(1e-3)
            loss = -(wanted * scores.log_softmax(dim=0)).sum(dim=0).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            falling.step()
    importance.requires_grad_(False)
    with torch.inference_mode():
        scores = torch.cat([importance(part.to(device).float()) for part in attention.hidden])
        paid = attention.mass.flatten(0, 1).to(device)
        kept = paid.gather(0, scores.topk(len(scores) // 10, dim=0).indices).sum(dim=0)
        return float((kept / paid.sum(dim=0)).mean())


def hide(
    tokenizer: Tokenizer, book: Sequence[int], sentences: Sequence[str], length: int, source: random.Random
) -> tuple[list[int], list[int]]:
    """A stretch of the book of `length` tokens in all, the sentences in it at random places, in order; and where each ends."""
    hidden = [tokenizer.encode(" " + sentence, start=False) for sentence in sentences]
    room = length - sum(map(len, hidden))
    begin = source.randrange(len(book) - room)
    hay = book[begin : begin + room]
    borders = [
        place for place in range(20, room - 60) if tokenizer.token_text(hay[place - 1]).endswith((".", "!", "?"))
    ]
    places = sorted(source.choices(borders or [20], k=len(hidden)))
    tokens: list[int] = []
    ends: list[int] = []
    done = 0
    for place, sentence in zip(places, hidden, strict=True):
        tokens += [*hay[done:place], *sentence]
        ends.append(len(tokens))
        done = place
    return [*tokens, *hay[done:]], ends


def question(tokenizer: Tokenizer, fact: Needle) -> tuple[list[int], list[int]]:
    """Tokens of a question on a line of its own, and of its answer."""
    return tokenizer.encode("\n" + fact.question, start=False), tokenizer.encode(fact.answer, start=False)


def _ask(decoder: Asking, tokenizer: Tokenizer, state: MemoryState, fact: Needle) -> bool:
    """Whether the model answers it right, having added to `mass` where it looked."""
    asked, answer = question(tokenizer, fact)
    decoder.answers = slice(len(asked) - 1, None)
    tokens = torch.tensor([[*asked, *answer[:-1]]], device=decoder.device)
    logits, _ = decoder(tokens, state.clone(), logits="all")
    decoder.answers = None
    right = bool(logits[0, len(asked) - 1 :].argmax(dim=-1).tolist() == answer)
    decoder.mass += decoder.found * (1.0 if right else _SURE)
    return right


def _all_of_it() -> MemoryConfig:
    """A window that holds a stretch and the question after it, read at once."""
    segment = MemoryConfig().segment
    return MemoryConfig(window=LENGTH + segment, segment=segment)
