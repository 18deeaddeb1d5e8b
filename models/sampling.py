"""Choosing the next token from logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How one session's tokens are chosen. Applied in this order: penalty, temperature, top-k, top-p, min-p.

    Temperature 0 is greedy. `top_k` 0, `top_p` 1, `min_p` 0 and `repetition_penalty` 1 each do nothing.
    """

    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        limits = (
            (self.temperature >= 0 and math.isfinite(self.temperature), "temperature must be 0 or more"),
            (0 < self.top_p <= 1, "top_p must be above 0 and at most 1"),
            (self.top_k >= 0, "top_k must be 0 (off) or more"),
            (0 <= self.min_p <= 1, "min_p must lie between 0 and 1"),
            (0 < self.repetition_penalty < math.inf, "repetition_penalty must be above 0 and finite"),
            (self.seed is None or -(1 << 63) <= self.seed < 1 << 63, "seed must be a 64-bit integer with a sign"),
            (self.logprobs is None or self.logprobs >= 0, "logprobs must be 0 or more"),
        )
        for holds, message in limits:
            if not holds:
                raise ConfigError(message)


@dataclass(frozen=True)
class Sample:
    """A chosen token, its log-probability, and the likeliest tokens at its place (when asked for)."""

    token: int
    logprob: float | None = None
    top: Sequence[tuple[int, float]] = ()


class Sampler:
    """Samples for one generation. The same seed, logits and settings give the same tokens, alone or in a batch."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = torch.Generator()
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(sampling.seed)

    def sample(self, logits: Tensor, recent: Tensor) -> Sample:
        """Choose from float32 logits (V,). `recent` (n,) are the ids that the repetition penalty looks at."""
        sampling = self._sampling
        scores = logits.cpu()
        if sampling.repetition_penalty != 1.0 and len(recent):
            scores = penalize(scores, recent.cpu(), sampling.repetition_penalty)
        greedy = sampling.temperature == 0
        token = int(scores.argmax()) if greedy else self._draw(filtered(scores, sampling))
        if sampling.logprobs is None:
            return Sample(token)
        return self._with_logprobs(token, logits.cpu(), sampling.logprobs)

    def skip(self, count: int) -> None:
        """Go on as if `count` tokens had been sampled."""
        torch.rand(count, generator=self._random, dtype=torch.float64)

    def _draw(self, probabilities: Tensor) -> int:
        # One uniform number a token, whatever the filters left: settings do not shift the random stream.
        threshold = torch.rand((), generator=self._random, dtype=torch.float64)
        cumulative = probabilities.double().cumsum(0)
        token = int(torch.searchsorted(cumulative, threshold * cumulative[-1], right=True))
        # Rounding can carry the threshold past the last token that has any probability.
        return min(token, int(probabilities.nonzero()[-1]))

    @staticmethod
    def _with_logprobs(token: int, logits: Tensor, count: int) -> Sample:
        logprobs = logits.log_softmax(-1)
        values, ids = logprobs.topk(min(count, len(logprobs)))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return Sample(token, float(logprobs[token]), top)


def penalize(logits: Tensor, recent: Tensor, penalty: float) -> Tensor:
    """Repetition penalty (CTRL, arXiv 1909.05858, section 4.1): push the ids in `recent` away from being chosen."""
    seen = recent.long().unique()
    chosen = logits[seen]
    return logits.index_put((seen,), torch.where(chosen > 0, chosen / penalty, chosen * penalty))


def filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities (V,) after temperature and the top-k, top-p and min-p filters; at least one token stays."""
    # Far below 1e-6 only the likeliest token is left, and float32 would round the temperature to zero.
    probabilities = torch.softmax((logits - logits.max()) / max(sampling.temperature, 1e-6), dim=-1)
    if 0 < sampling.top_k < len(logits):
        smallest = probabilities.topk(sampling.top_k).values[-1]
        probabilities = probabilities.where(probabilities >= smallest, 0)
    if sampling.top_p < 1:
        probabilities = _nucleus(probabilities, sampling.top_p)
    if sampling.min_p > 0:
        probabilities = probabilities.where(probabilities >= sampling.min_p * probabilities.max(), 0)
    return probabilities


def _nucleus(probabilities: Tensor, share: float) -> Tensor:
    """Only the likeliest tokens (V,) stay: those that others which are likelier do not make up the share without.

    Few are enough as a rule, and sorting a whole vocabulary takes as long as a step of the model.
    """
    wanted, count = share * probabilities.sum(), 512
    while True:
        ordered, order = probabilities.topk(min(count, len(probabilities)))
        kept = ordered.cumsum(0) - ordered < wanted
        if not kept[-1] or count >= len(probabilities):
            return torch.zeros_like(probabilities).index_copy(0, order[kept], ordered[kept])
        count *= 8
