"""How slots learn to be looked at: `models.memory.look.Look` is taught answers far behind their facts, against plain text.

Text pays for every look that finds nothing. Nothing else of the model or the memory changes.
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

LENGTHS = (1500, 1500, 3000, 3000, 3000, 6000, 6000, 6000, 12_000, 12_000, 12_000, 24_000)
"""Tokens of the sessions that are asked, each with facts of its own."""
REPEATS = (80, 200, 200, 400, 800)
"""Repetitions of the passkey's filler in further sessions: among thousands of equal sentences far looks drown soonest."""
FACTS = 26
NEEDLES = 6
"""Facts in plain words, and numbers, in each session."""
QUESTIONS = 16
"""How many of them are asked for in one step."""
TEXT = 192
"""Tokens of plain text that follow a session in one step."""
_NUMBER_RATE = 0.05
_MATRIX_RATE = 0.005
"""Learning rates of single numbers by head, and of vectors and matrices: at .02 the latter cost text more than they found."""
_BEGIN = (1.3, -2.0)
"""Sharpness and offset before the first step: a common pair that finds facts at 4,096 tokens and costs text little."""
_WEIGHTY = 3
"""Answers from which a step weighs fully: one passkey must not weigh as much as a whole session of facts."""
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
    """Teach the look of the decoder's slots in place; `say` hears of every tenth step.

    A step takes one session: some of what it can be asked for, and how its text goes on. `text_weight` is what a nat of text counts
    beside one of an answer. Raises `ConfigError` for a book that is too short.
    """
    memory = decoder.memory
    assert isinstance(memory, Slots)
    look = memory.look
    assert look is not None
    needed = max(LENGTHS) + TEXT + 2
    if len(book) < needed:
        raise ConfigError(f"the book has {len(book)} tokens; at least {needed} are needed: give a longer one")
    source, began = random.Random(seed), time.monotonic()
    with torch.no_grad():
        look.sharpness.fill_(_BEGIN[0])
        look.offset.fill_(_BEGIN[1])
    sessions = [_facts(decoder, tokenizer, book, length, source) for length in LENGTHS]
    sessions += [_passkey(decoder, tokenizer, book, repeats, source) for repeats in REPEATS]
    look.requires_grad_(True)
    matrices = [look.eagerness, look.down, look.up]
    optimizer = torch.optim.Adam(
        [{"params": [look.sharpness, look.offset], "lr": _NUMBER_RATE}, {"params": matrices, "lr": _MATRIX_RATE}],
        betas=(0.9, 0.98),
    )
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
    order: list[Session] = []
    sure: list[bool] = []
    nats: list[float] = []
    for step in range(1, steps + 1):
        order = order or source.sample(sessions, len(sessions))
        session = order.pop()
        asked = source.sample(session.facts, min(QUESTIONS, len(session.facts)))
        answers = _answers(decoder, tokenizer, session, asked)
        weight = min(1.0, len(answers) / _WEIGHTY)
        (weight * torch.stack([answer.mean() for answer in answers]).mean()).backward()
        [text] = _losses(decoder, session, [session.after[:-1]], [session.after[1:]])
        (text_weight * text.mean()).backward()
        optimizer.step()
        falling.step()
        optimizer.zero_grad()
        sure += [float(answer.detach().max()) < _LIKELIER for answer in answers]
        nats.append(float(text.detach().mean()))
        if step % 10 == 0:
            say(Progress(step, sum(sure) / len(sure), sum(nats) / len(nats), time.monotonic() - began))
            sure, nats = [], []
    memory.requires_grad_(False)


def _facts(decoder: Decoder, tokenizer: Tokenizer, book: Sequence[int], length: int, source: random.Random) -> Session:
    """Facts in a stretch of the book."""
    facts = lessons(source, FACTS, NEEDLES)
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


def _answers(decoder: Decoder, tokenizer: Tokenizer, session: Session, facts: Sequence[Needle]) -> list[Tensor]:
    """Nats of each token of every answer."""
    pairs = [question(tokenizer, fact) for fact in facts]
    rows = [[*asked, *answer[:-1]] for asked, answer in pairs]
    return _losses(decoder, session, rows, [answer for _, answer in pairs])


def _losses(
    decoder: Decoder, session: Session, rows: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Nats of what the last tokens of each row should be followed by; the session stays as it is."""
    state = UnrolledState.start(decoder.spec(), len(rows), decoder.device)
    for name, tensor in session.state.tensors().items():
        state.write(name, tensor.expand(len(rows), *tensor.shape[1:]))
    longest = max(map(len, rows))
    # What comes behind a row's end changes nothing in it.
    filled = [[*row, *[0] * (longest - len(row))] for row in rows]
    hidden, _ = decoder.run(torch.tensor(filled, device=decoder.device), state)
    ends = [
        row[len(tokens) - len(targets) : len(tokens)] for row, tokens, targets in zip(hidden, rows, wanted, strict=True)
    ]
    logits = decoder.read_out(torch.cat(ends))
    targets = torch.tensor([token for row in wanted for token in row], device=decoder.device)
    losses = F.cross_entropy(logits, targets, reduction="none")
    return list(losses.split([len(row) for row in wanted]))
