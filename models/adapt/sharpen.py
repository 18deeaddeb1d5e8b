"""How sharply slots are looked at: one factor and one offset for the far scores of each query head.

All far tokens lie at one distance, and there are many of them: what an answer needs is drowned by what merely resembles it, or by
the ring. Both numbers are learned from facts that are asked for far behind them, against plain text, which pays for every look
that finds nothing. Nothing else of the model or the memory changes.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.adapt.foretell import hide, question
from models.errors import ConfigError
from models.lessons import lessons
from models.memory.slots import Slots
from models.probes import Needle, passkey, passkey_haystack
from models.state import MemoryState
from models.tokenizer import Tokenizer
from models.transformer import Decoder
from models.unrolled import UnrolledState

LENGTHS = (1500, 1500, 3000, 3000, 6000, 6000, 12_000, 12_000)
"""Tokens of the sessions that are asked, each with facts of its own."""
REPEATS = (80, 200, 400)
"""Repetitions of the passkey's filler in further sessions: among thousands of equal sentences far looks drown soonest."""
FACTS = 14
QUESTIONS = 4
"""Facts asked in one step."""
TEXT = 256
"""Tokens of plain text that follow a session in one step."""
_RATE = 0.05
_BEGIN = (1.3, -2.0)
_LIKELIER = math.log(2)
"""Nats of a token that is as likely as all others together."""


@dataclass(frozen=True)
class Session:
    """A state that has read a stretch of the book with facts in it, the facts, and how the book goes on."""

    state: MemoryState
    facts: list[Needle]
    after: Sequence[int]


@dataclass(frozen=True)
class Progress:
    """Where it stands: the share of the last answers that were likelier than all else, and nats a token of text."""

    step: int
    sure: float
    nats: float
    seconds: float


def sharpen(
    decoder: Decoder,
    tokenizer: Tokenizer,
    book: Sequence[int],
    *,
    steps: int,
    text_weight: float,
    seed: int,
    say: Callable[[Progress], None],
) -> None:
    """Learn `sharpness` and `offset` of the decoder's slots in place; `say` hears of every tenth step.

    `text_weight` is what a nat of text counts beside one of an answer. Raises `ConfigError` for a book that is too short.
    """
    memory = decoder.memory
    assert isinstance(memory, Slots)
    needed = max(LENGTHS) + TEXT + 2
    if len(book) < needed:
        raise ConfigError(f"the book has {len(book)} tokens; at least {needed} are needed: give a longer one")
    source, began = random.Random(seed), time.monotonic()
    with torch.no_grad():
        memory.sharpness.fill_(_BEGIN[0])
        memory.offset.fill_(_BEGIN[1])
    sessions = [_facts(decoder, tokenizer, book, length, source) for length in LENGTHS]
    sessions += [_passkey(decoder, tokenizer, book, repeats, source) for repeats in REPEATS]
    learned = [memory.sharpness.requires_grad_(True), memory.offset.requires_grad_(True)]
    optimizer = torch.optim.Adam(learned, lr=_RATE)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.2, steps)
    sure: list[bool] = []
    nats = 0.0
    for step in range(1, steps + 1):
        session = source.choice(sessions)
        asked = source.sample(session.facts, min(QUESTIONS, len(session.facts)))
        answers = [_answer(decoder, tokenizer, session, fact) for fact in asked]
        text = _losses(decoder, session, session.after[:-1], session.after[1:]).mean()
        loss = torch.stack([answer.mean() for answer in answers]).mean() + text_weight * text
        loss.backward()
        optimizer.step()
        falling.step()
        optimizer.zero_grad()
        sure += [float(answer.detach().max()) < _LIKELIER for answer in answers]
        nats += float(text.detach())
        if step % 10 == 0:
            say(Progress(step, sum(sure) / len(sure), nats / 10, time.monotonic() - began))
            sure, nats = [], 0.0
    memory.requires_grad_(False)


def _facts(decoder: Decoder, tokenizer: Tokenizer, book: Sequence[int], length: int, source: random.Random) -> Session:
    """Facts in a stretch of the book."""
    facts = lessons(source, FACTS)
    begin = source.randrange(len(book) - length - TEXT - 1)
    part = book[begin : begin + length + 1]
    tokens = hide(tokenizer, part, [fact.sentence for fact in facts], length, source)
    return Session(_read(decoder, tokens), facts, book[begin + length : begin + length + TEXT + 1])


def _passkey(
    decoder: Decoder, tokenizer: Tokenizer, book: Sequence[int], repeats: int, source: random.Random
) -> Session:
    """A passkey anywhere in its filler; what follows is of the book, and owes nothing to it."""
    key, before = passkey(source), source.randrange(repeats)
    text = f"{passkey_haystack(before)}\n{key.sentence}\n{passkey_haystack(repeats - before)}"
    begin = source.randrange(len(book) - TEXT - 1)
    return Session(_read(decoder, tokenizer.encode(text)), [key], book[begin : begin + TEXT + 1])


@torch.no_grad()
def _read(decoder: Decoder, tokens: Sequence[int]) -> MemoryState:
    state = decoder.empty_state()
    for read in torch.tensor([tokens], device=decoder.device).split(512, dim=1):
        decoder(read, state)
    return state


def _answer(decoder: Decoder, tokenizer: Tokenizer, session: Session, fact: Needle) -> Tensor:
    """Nats of each token of the answer."""
    asked, answer = question(tokenizer, fact)
    return _losses(decoder, session, [*asked, *answer[:-1]], answer)


def _losses(decoder: Decoder, session: Session, tokens: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Nats of what the last tokens of a call should be followed by; the session stays as it is."""
    state = UnrolledState.start(decoder.spec(), 1, decoder.device)
    for name, tensor in session.state.tensors().items():
        state.write(name, tensor)
    logits, _ = decoder(torch.tensor([tokens], device=decoder.device), state, logits="all")
    return F.cross_entropy(logits[0, -len(wanted) :], torch.tensor(wanted, device=decoder.device), reduction="none")
