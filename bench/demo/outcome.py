"""What came of the demo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Answer:
    """One question over the WebSocket. `first_token_ms` counts from before the socket was opened.

    `resumed` tells that it was the first request after a restart: the state had to come back from the store.
    """

    question: str
    answer: str
    expected: str
    tokens: int
    state_bytes: int
    first_token_ms: float
    resumed: bool

    @property
    def right(self) -> bool:
        """Whether the model gave the planted value, exactly."""
        return self.answer.strip() == self.expected.strip()


@dataclass
class Outcome:
    """Filled in as the demo goes on."""

    tokens_wanted: int
    facts_asked: int
    tokens: int = 0
    read_tokens: int = 0
    read_seconds: float = 0.0
    """Time in which `read_tokens` were taken in by ordinary appends."""
    state_bytes_first: int = 0
    state_bytes_last: int = 0
    lost: int = 0
    twice: int = 0
    seen: int = 0
    """Tokens of the broken generation that the client had seen."""
    unseen: int = 0
    """Tokens of it that were durable, but had not reached the client."""
    foreseen: Sequence[int] = ()
    """Token ids that the session would go on with behind what it took in, by a rehearsal before the crash."""
    continued: Sequence[int] = ()
    """Token ids that it did go on with afterwards."""
    answers: list[Answer] = field(default_factory=list)

    @property
    def facts_recalled(self) -> int:
        """Planted facts that the last round of questions brought back."""
        return sum(answer.right for answer in self.answers[-self.facts_asked :])

    @property
    def speed(self) -> float:
        """Tokens per second of ordinary appends."""
        return self.read_tokens / self.read_seconds if self.read_seconds else 0.0

    @property
    def resume_ms(self) -> float:
        """Time to the first token after the second crash, model already loaded: snapshot, replay, question.

        Not after the first one: there the session had also to read what was journaled of the broken append and never read
        before, which is no resuming.
        """
        return next((answer.first_token_ms for answer in reversed(self.answers) if answer.resumed), 0.0)

    @property
    def passed(self) -> bool:
        """Whether everything was kept once, the memory did not grow, and every fact was recalled."""
        kept = not self.lost and not self.twice and self.tokens >= self.tokens_wanted
        return kept and self.state_bytes_first == self.state_bytes_last and self.facts_recalled == self.facts_asked

    def summary(self) -> dict[str, int]:
        """The figures of the last line."""
        return {
            "tokens": self.tokens,
            "state_bytes_first": self.state_bytes_first,
            "state_bytes_last": self.state_bytes_last,
            "acknowledged_lost": self.lost,
            "applied_twice": self.twice,
            "facts_asked": self.facts_asked,
            "facts_recalled": self.facts_recalled,
            "resume_ms": round(self.resume_ms),
        }
