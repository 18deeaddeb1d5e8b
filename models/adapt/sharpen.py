"""How slots learn to be looked at: `models.memory.look.Look` is taught answers far behind their facts, against plain text.

Text pays for every look that finds nothing. Nothing else of the model or the memory changes.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from models.adapt.foretell import hide, question
from models.asked import Asked, Before, Beside, Far
from models.errors import ConfigError
from models.lessons import lessons, said_anew, wording
from models.memory.look import TRAIL, Look
from models.memory.slots import Slots
from models.probes import Needle, passkey, passkey_haystack
from models.state import MemoryState, Spec, TensorSpec
from models.tokenizer import Tokenizer
from models.transformer import Decoder
from models.unrolled import UnrolledState

STREAMS = 4
"""Stretches of the book with facts in them, read from end to end."""
PLACES = (1536, 3072, 4608, 6144, 9216, 12_288, 18_432, 24_576)
"""Tokens after which the session of a stretch is taken down: what was said so far is asked for there, and its text goes on."""
REPEATS = (80, 200, 400, 800)
"""Repetitions of the passkey's filler in further sessions: among thousands of equal sentences far looks drown soonest."""
BEHIND = (0, 1, 4, 12, 40, 200)
"""Repetitions behind a key, for each of those: with few it is still in the ring, and what the slots hold must not outweigh it."""
QUESTIONS = 16
"""How many of them are asked for in one step."""
LEAD = 512
TEXT = 192
"""Tokens of plain text in one step, behind up to LEAD others: what comes again and again would be learned by heart."""
_NUMBER_RATE = 0.05
_MATRIX_RATE = 0.005
"""Learning rates of single numbers by head, and of vectors and matrices: at .02 the latter cost text more than they found."""
_BEGIN = (1.3, -2.0)
"""Sharpness and offset before the first step: a common pair that finds facts at 4,096 tokens and costs text little."""
_TRAIL = 0.04
"""What the keys before a key weigh at first: at .2 all that the heads had been finding was lost."""
_PASSKEY = 0.1
"""What a step's passkey counts beside the facts of a whole session."""
_BEGUN = 0.4
"""How much slower a look goes on learning that begins with an adapter."""
_FILLED = 4
"""How many of the sessions of filler go on as texts do."""
_LIKELIER = math.log(2)
"""Nats of a token that is as likely as all others together."""


@dataclass(frozen=True)
class Told:
    """Facts in plain words, and numbers, in each stretch, and how many of them are said anew."""

    facts: int = 74
    needles: int = 40
    anew: int = 30


@dataclass(frozen=True)
class Session:
    """A state that has read a text, what that said, and how it goes on: LEAD + TEXT + 1 tokens."""

    state: MemoryState
    facts: Sequence[Needle]
    after: Sequence[int]


@dataclass(frozen=True)
class Progress:
    """Where it stands: the share of the last answers that were likelier than all else, and nats a token of text."""

    step: int
    sure: float
    nats: float
    seconds: float


class Taught(Slots):
    """Slots that keep keys as they are, and those before them, so that trails can be learned: each read makes them anew.

    Rows of a batch must be one session that has been asked different things, none of which has left the ring.
    """

    def __init__(self, memory: Slots, decoder: Decoder) -> None:
        super().__init__(decoder.config, replace(memory.config, slot_dtype="same"), decoder.dtype)
        self.look, self.importance = memory.look, memory.importance

    def spec(self) -> Spec:
        """Of each slot the TRAIL keys before it, too."""
        before = TensorSpec((self._count, self.config.slots, self._size * TRAIL), self._dtype)
        return {**super().spec(), "slot_before": before}

    def read(self, layer: int, state: MemoryState, asked: Asked) -> Far | Beside | None:
        """With keys as the look would keep them today."""
        far = super().read(layer, state, asked)
        if not isinstance(far, Far):
            return far
        assert self.look is not None
        heads, used = self._range[layer], slice(0, far.keys.shape[2])
        keys = far.keys[:1].to(self._wide)
        told = state.read("slot_before", heads, used)[:1].unflatten(-1, (self._size, TRAIL))
        place = state.read("slot_position", heads, used)[:1, ..., None, None]
        known = place >= torch.arange(TRAIL, 0, -1, device=keys.device)
        kept = self.look.kept(keys, Before(told.to(self._wide), known), heads).to(asked.plain.dtype)
        return replace(far, keys=kept.expand_as(far.keys))

    def keeps(self) -> None:
        """Keys as they are kept would have to be looked at before the look is known."""
        return

    def _far_keys(self, look: Look, heads: slice, keys: Tensor, before: Before) -> Tensor:
        return keys

    def _also_kept(self, before: Before) -> dict[str, Tensor]:
        return {"slot_before": before.keys.flatten(-2).to(self._dtype)}


def sharpen(
    decoder: Decoder,
    tokenizer: Tokenizer,
    book: Sequence[int],
    *,
    steps: int,
    text_weight: float,
    seed: int,
    begun: bool = False,
    told: Told = Told(),
    say: Callable[[Progress], None],
) -> None:
    """Teach the look of the decoder's slots in place; `say` hears of every tenth step.

    A step takes some of what one session can be asked for, a passkey, and how the text of a session goes on. `text_weight` is what
    a nat of text counts beside one of an answer. A look that has `begun` goes on from where it is. Raises `ConfigError` for a book
    that is too short.
    """
    memory = decoder.memory
    assert isinstance(memory, Slots)
    look = memory.look
    assert look is not None
    decoder = Decoder(decoder.weights, Taught(memory, decoder))
    needed = PLACES[-1] + LEAD + TEXT + 2
    if len(book) < needed:
        raise ConfigError(f"the book has {len(book)} tokens; at least {needed} are needed: give a longer one")
    source, began = random.Random(seed), time.monotonic()
    if not begun:
        with torch.no_grad():
            look.sharpness.fill_(_BEGIN[0])
            look.offset.fill_(_BEGIN[1])
    streams = [session for _ in range(STREAMS) for session in _facts(decoder, tokenizer, book, told, source)]
    passkeys = _passkeys(decoder, tokenizer, book, source)
    if not begun:
        with torch.no_grad():
            look.centre.copy_(_centre(streams))
            look.key_trail.fill_(_TRAIL)
    look.requires_grad_(True)
    matrices = [
        look.eagerness,
        look.down,
        look.up,
        look.centre,
        look.key_trail,
        look.query_trail,
        look.gain,
        look.slope,
    ]
    numbers, pace = [look.sharpness, look.offset, look.steepness], _BEGUN if begun else 1.0
    optimizer = torch.optim.Adam(
        [{"params": numbers, "lr": pace * _NUMBER_RATE}, {"params": matrices, "lr": pace * _MATRIX_RATE}],
        betas=(0.9, 0.98),
    )
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
    asking: list[Session] = []
    reading: list[Session] = []
    sure: list[bool] = []
    nats: list[float] = []
    for step in range(1, steps + 1):
        asking = asking or [session for session in source.sample(streams, len(streams)) if session.facts]
        session = asking.pop()
        asked = source.sample(session.facts, min(QUESTIONS, len(session.facts)))
        answers = _answers(decoder, tokenizer, session, asked)
        torch.stack([answer.mean() for answer in answers]).mean().backward()
        filled = source.choice(passkeys)
        [answer] = _answers(decoder, tokenizer, filled, filled.facts)
        (_PASSKEY * answer.mean()).backward()
        if not reading:
            reading = [*streams, *source.sample(passkeys, min(_FILLED, len(passkeys)))]
            source.shuffle(reading)
        text = _text(decoder, reading.pop(), source)
        (text_weight * text.mean()).backward()
        optimizer.step()
        falling.step()
        optimizer.zero_grad()
        sure += [float(one.detach().max()) < _LIKELIER for one in answers]
        nats.append(float(text.detach().mean()))
        if step % 10 == 0:
            say(Progress(step, sum(sure) / len(sure), sum(nats) / len(nats), time.monotonic() - began))
            sure, nats = [], []
    memory.requires_grad_(False)


def _centre(sessions: Sequence[Session]) -> Tensor:
    """(R, d): the mean of the keys that each head has kept, over sessions."""
    means = []
    for session in sessions:
        held = (session.state.read("slot_score")[0] > -torch.inf)[..., None]
        means.append((session.state.read("slot_keys")[0] * held).sum(dim=1, dtype=torch.float32) / held.sum(dim=1))
    return torch.stack(means).mean(dim=0)


def _facts(
    decoder: Decoder, tokenizer: Tokenizer, book: Sequence[int], told: Told, source: random.Random
) -> list[Session]:
    """The sessions of a stretch of the book with facts in it. Of what was said anew the newest counts."""
    facts = lessons(source, told.facts, told.needles)
    facts += [said_anew(source, fact) for fact in source.sample(facts, told.anew)]
    source.shuffle(facts)
    length = PLACES[-1] + LEAD + TEXT + 1
    tokens, ends = hide(tokenizer, book, [fact.sentence for fact in facts], length, source)
    state, sessions = decoder.empty_state(), []
    for begin, end in pairwise((0, *PLACES)):
        _read(decoder, tokens[begin:end], state)
        said = {wording(fact): fact for fact, place in zip(facts, ends, strict=True) if place <= end}
        sessions.append(Session(state.clone(), list(said.values()), tokens[end : end + LEAD + TEXT + 1]))
    return sessions


def _passkeys(decoder: Decoder, tokenizer: Tokenizer, book: Sequence[int], source: random.Random) -> list[Session]:
    """Passkeys behind more and more filler, each with more or less of it behind; then comes the book, from anywhere."""
    state, sessions = decoder.empty_state(), []
    for before, repeats in pairwise((0, *REPEATS)):
        told = len(tokenizer.encode(passkey_haystack(before))) if before else 0
        _read(decoder, tokenizer.encode(passkey_haystack(repeats))[told:], state)
        for behind in BEHIND:
            key, filled = passkey(source), state.clone()
            filler = passkey_haystack(behind).partition("\n")[2]
            _read(decoder, tokenizer.encode(f"\n{key.sentence}\n{filler}", start=False), filled)
            begin = source.randrange(len(book) - LEAD - TEXT)
            sessions.append(Session(filled, [key], book[begin : begin + LEAD + TEXT + 1]))
    return sessions


@torch.no_grad()
def _read(decoder: Decoder, tokens: Sequence[int], state: MemoryState) -> None:
    for read in torch.tensor([tokens], device=decoder.device).split(384, dim=1):
        decoder(read, state)


def _text(decoder: Decoder, session: Session, source: random.Random) -> Tensor:
    """Nats of TEXT tokens of how a session goes on, from anywhere near."""
    lead = source.randrange(LEAD + 1)
    state = session.state.clone()
    if lead:
        _read(decoder, session.after[:lead], state)
    text = session.after[lead : lead + TEXT + 1]
    [losses] = _losses(decoder, state, [text[:-1]], [text[1:]])
    return losses


def _answers(decoder: Decoder, tokenizer: Tokenizer, session: Session, facts: Sequence[Needle]) -> list[Tensor]:
    """Nats of each token of every answer."""
    pairs = [question(tokenizer, fact) for fact in facts]
    rows = [[*asked, *answer[:-1]] for asked, answer in pairs]
    return _losses(decoder, session.state, rows, [answer for _, answer in pairs])


def _losses(
    decoder: Decoder, read: MemoryState, rows: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Nats of what the last tokens of each row should be followed by; what was `read` stays as it is."""
    state = UnrolledState.start(decoder.spec(), len(rows), decoder.device)
    for name, tensor in read.tensors().items():
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
