"""What a token is worth to the head that would keep it: two ways for `slots` to choose while the text streams.

`Leverage` knows only the head's own keys and needs no training. `Learned` foretells from what the model thought at the token how
much attention later questions will pay it, as KVzap (arXiv 2601.07891) and Fast KVzip do; `palimpsest-server calibrate` trains it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import native
from models.config import MemoryConfig
from models.memory.base import Evicted
from models.state import MemoryState, Spec, TensorSpec

WIDTH = 64
"""Hidden units of what foretells attention: a linear map kept 0.7 points less of it (a tenth of a novel's tokens, 16 heads)."""


class Importance(nn.Module, ABC):
    """Scores for evicted tokens, by head; higher stays longer. `heads` are R key/value heads of d dimensions."""

    lookahead = 0
    """How many tokens behind the evicted ones it wants to see."""

    @abstractmethod
    def spec(self) -> Spec:
        """What it keeps for a session."""

    @abstractmethod
    def scores(self, heads: slice, state: MemoryState, evicted: Evicted, of: list[int]) -> Tensor:
        """Scores (B, r, S) of the evicted tokens of one layer's heads, which are `of` its key/value heads.

        The sinks get -inf: they never leave the model's sight.
        """

    def known(self, state: MemoryState, starts: Tensor, counted: Tensor) -> Tensor | None:
        """(B, R, S), of all heads, where scores do not hang on what is evicted; see `Memory.worth`."""
        return None

    def hear(self, hidden: Tensor, positions: Tensor, state: MemoryState) -> None:
        """Take note of hidden vectors (B, T, D), wide, of the tokens at positions (B, T). Only of one that listens."""


class Leverage(Importance):
    """Squared Mahalanobis distance to the running mean and covariance of the head's own keys.

    Smoothed by the maximum over `reach` neighbours on both sides; leverage as in Compactor (arXiv 2507.08143), but of a stream.
    `ridge` keeps the covariance invertible.
    """

    def __init__(
        self, config: MemoryConfig, heads: int, size: int, wide: torch.dtype, ridge: float, reach: int
    ) -> None:
        super().__init__()
        self._sinks, self._heads, self._size, self._wide = config.sinks, heads, size, wide
        self._ridge, self.lookahead = ridge, reach

    def spec(self) -> Spec:
        """Mean and scatter of the keys so far, and the scores that the next segment's first tokens look back on."""
        heads, size = self._heads, self._size
        return {
            "key_mean": TensorSpec((heads, size), self._wide),
            "key_scatter": TensorSpec((heads, size, size), self._wide),
            "last_scores": TensorSpec((heads, self.lookahead), self._wide, fill=-torch.inf),
        }

    def scores(self, heads: slice, state: MemoryState, evicted: Evicted, of: list[int]) -> Tensor:
        """Smoothed leverage. Updates mean and scatter, from which sinks are left out: their keys are extreme."""
        reach, keys = self.lookahead, evicted.keys[:, of]  # (B, r, S + reach, d)
        length = keys.shape[2] - reach
        position = evicted.starts[:, None] + torch.arange(length + reach, device=keys.device)  # (B, S + reach)
        counted = (position >= self._sinks).to(keys.dtype)[:, None, :, None]  # (B, 1, S + reach, 1)
        mean, scatter, count = self._statistics(
            heads, state, keys[:, :, :length], counted[:, :, :length], evicted.starts
        )
        centred = keys - mean[:, :, None]
        ridge = self._ridge * torch.eye(self._size, device=keys.device)
        factor = torch.linalg.cholesky(scatter / count[:, None, None, None] + ridge)
        whitened = torch.linalg.solve_triangular(factor, centred.transpose(-1, -2), upper=False)
        score = whitened.square().sum(dim=2)  # (B, r, S + reach)
        score = score.masked_fill(counted[..., 0] == 0, -torch.inf)
        around = torch.cat((state.read("last_scores", heads), score), dim=-1)
        state.write("last_scores", score[..., length - reach : length], heads)
        smoothed = F.max_pool1d(around.flatten(0, 1), 2 * reach + 1, stride=1).view(*score.shape[:2], length)
        return smoothed.masked_fill(counted[:, :, :length, 0] == 0, -torch.inf)

    def _statistics(
        self, heads: slice, state: MemoryState, keys: Tensor, counted: Tensor, starts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Merge a segment into the running mean (B, r, d) and scatter (B, r, d, d): Chan, Golub & LeVeque 1983."""
        before = (starts - self._sinks).clamp_min(0).to(keys.dtype)  # (B,) tokens counted so far
        added = counted.sum(dim=(1, 2, 3))
        count = before + added
        old_mean, old_scatter = state.read("key_mean", heads), state.read("key_scatter", heads)
        new_mean = (keys * counted).sum(dim=2) / added[:, None, None].clamp_min(1)
        centred = (keys - new_mean[:, :, None]) * counted
        shift = new_mean - old_mean
        weight = (added / count.clamp_min(1))[:, None, None]
        mean = old_mean + shift * weight
        between = (before * added / count.clamp_min(1))[:, None, None, None]
        scatter = old_scatter + centred.transpose(-1, -2) @ centred
        scatter = scatter + between * shift[..., :, None] * shift[..., None, :]
        state.write("key_mean", mean, heads)
        state.write("key_scatter", scatter, heads)
        return mean, scatter, count.clamp_min(1)


class Learned(Importance):
    """Two layers over the hidden vector of one decoder layer, normed: for each head the log of the attention to come.

    Scores are computed when the model reads the token and wait until it leaves the ring. For that, no more than W tokens may be
    read at once: the places of those that lower layers still have to evict would be taken otherwise.
    """

    def __init__(self, config: MemoryConfig, heads: int, hidden_size: int, wide: torch.dtype) -> None:
        super().__init__()
        self._heads, self._wide = heads, wide
        self._places = 2 * config.window + config.segment
        self.down = nn.Parameter(torch.zeros(WIDTH, hidden_size, dtype=wide))
        self.up = nn.Parameter(torch.zeros(heads, WIDTH, dtype=wide))
        self.offset = nn.Parameter(torch.zeros(WIDTH, dtype=wide))

    def spec(self) -> Spec:
        """The scores of the tokens in the ring, and of those that are read while the ring's are evicted."""
        return {"importance": TensorSpec((self._places, self._heads), self._wide)}

    def forward(self, hidden: Tensor) -> Tensor:
        """Scores (..., R) of hidden vectors (..., D)."""
        normed = F.rms_norm(hidden, hidden.shape[-1:])
        return F.linear(F.silu(F.linear(normed, self.down, self.offset)), self.up)

    def hear(self, hidden: Tensor, positions: Tensor, state: MemoryState) -> None:
        """Score the tokens, and let the scores wait."""
        if native.suits_hear(self, hidden, state):
            native.hear(self, hidden, positions, state)
            return
        state.write_places("importance", positions % self._places, self(hidden.to(self._wide)))

    def known(self, state: MemoryState, starts: Tensor, counted: Tensor) -> Tensor:
        """What was noted when the tokens were read."""
        places = starts[:, None] + torch.arange(counted.shape[1], device=starts.device)
        noted = state.read_places("importance", places % self._places).transpose(1, 2)
        return noted.masked_fill(~counted[:, None], -torch.inf)

    def scores(self, heads: slice, state: MemoryState, evicted: Evicted, of: list[int]) -> Tensor:
        """What was noted of these heads."""
        return self.known(state, evicted.starts, evicted.counted)[:, heads]
