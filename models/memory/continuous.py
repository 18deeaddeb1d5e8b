"""`continuous`: what leaves the ring is kept as a signal over [0, 1] that every fold contracts (∞-former, arXiv 2109.00301).

The signal is X(t) = Bᵀψ(t) over N Gaussian radial basis functions ψ. A fold samples the old signal, lays the samples into
[0, τ] and the new tokens into (τ, 1], and fits both anew by ridge regression. A query answers with a Gaussian density over
[0, 1], and is answered with the expectation of the signal under it, added to what the ring gives.

The paper fits the hidden vectors X and projects the coefficients: keys BWᴷ, values BWⱽ. Ridge regression is linear in the
signal, so fitting the keys and the values themselves gives the same coefficients; that is what is done here.

Two more choices. `gibbs` asks as ∞-Video does (arXiv 2501.19098): the density of a query is the softmax of its scores on the
signal, taken at as many points as a fold samples, so that a pretrained model's heads find in the signal what they look for. The
points stand in one softmax with the ring, seen at distance W, behind a gate. `gated` is ours: whether a fold happens is
learned, head by head, from the mean of the odds that the segment's tokens give it. A signal that every fold contracts has lost
what is a dozen folds old; where nothing worth a fold was read, nothing is contracted. A fold by half would be worse than either:
the old signal would lie beside its own contraction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.asked import Asked, Beside, Far
from models.attention import attend_with_mass
from models.config import ModelConfig
from models.errors import ConfigError
from models.layers import wide
from models.memory.base import Evicted, LayerReport, Mechanism, Report
from models.memory.deciding import DecidingConfig, DecidingMemory
from models.memory.strength import logit
from models.state import MemoryState, Spec, TensorSpec

_UNIFORM = 0.01
"""Share of a sticky fold's samples that lie evenly: stretches that nobody attended to stay in reach, and a quantile is
never taken where the histogram is flat, where the last bit of a float would move it far."""


@dataclass(frozen=True)
class ContinuousConfig(DecidingConfig):
    """`basis` is N, half of it with each of two `widths` (standard deviations); `ridge` is λ.

    `samples` points of the old signal are contracted into [0, `tau`] at every fold. `sticky` samples it where the queries
    since the last fold have looked, by a histogram of `bins`. The variance of a density is at least `min_variance`; while
    training it is drawn towards `prior_width`², with the weight `prior_weight`. `gate_init` is the gates' logit.

    `density` is `gaussian`, the paper's, or `gibbs`. `gated` learns which folds happen.

    The defaults are the paper's for language (512 functions and samples for segments of 512, widths .005 and .01, τ = λ = .5)
    at half the size, for segments of 256.
    """

    by_segment = True
    basis: int = 256
    samples: int = 256
    tau: float = 0.5
    ridge: float = 0.5
    widths: tuple[float, ...] = (0.01, 0.02)
    sticky: bool = False
    bins: int = 128
    min_variance: float = 1e-4
    prior_width: float = 0.05
    prior_weight: float = 1e-6
    gate_init: float = -10.0
    density: Literal["gaussian", "gibbs"] = "gaussian"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.widths or not all(width > 0 for width in self.widths):
            raise ConfigError(f"widths must be one or more numbers above 0, not {self.widths}")
        if self.basis < 2 * len(self.widths) or self.basis % len(self.widths):
            raise ConfigError(
                f"basis ({self.basis}) must be a multiple of the number of widths, twice as large at least"
            )
        for name in ("samples", "bins"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("ridge", "min_variance", "prior_width"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        if not 0 < self.tau < 1:
            raise ConfigError(f"tau must lie between 0 and 1, not {self.tau}")
        if not self.prior_weight >= 0:
            raise ConfigError(f"prior_weight must not be negative, not {self.prior_weight}")
        if self.density not in ("gaussian", "gibbs"):
            raise ConfigError(f"density must be gaussian or gibbs, not {self.density!r}")
        if self.sticky and self.density != "gaussian":
            raise ConfigError("sticky belongs to the density gaussian: leave it out with gibbs")


class Continuous(DecidingMemory):
    """See the top of this file. Parameters are by memory layer and query head."""

    config: ContinuousConfig
    _centres: Tensor  # (N / widths,): the functions lie centre by centre, each with every width
    _variances: Tensor  # (widths,)
    _levels: Tensor  # (samples,)
    _edges: Tensor  # (bins + 1,)
    _take_first: Tensor  # (S, N)
    _take: Tensor  # (S, N)
    _samples: Tensor  # (samples, N)
    _carry: Tensor  # (N, samples)

    def __init__(self, model: ModelConfig, config: ContinuousConfig, dtype: torch.dtype) -> None:
        super().__init__(config)
        self._model, self._wide = model, wide(dtype)
        self._layers = config.memory_layers(model)
        self._heads = list(range(model.num_kv_heads))
        self._lay_out()
        heads, size = (len(self._layers), model.num_heads), config.basis
        self.gate = nn.Parameter(torch.full(heads, config.gate_init, dtype=self._wide))
        if config.gated:
            written = (len(self._layers), model.num_kv_heads)
            self.write_weight = nn.Parameter(torch.zeros(*written, 2 * model.head_dim, dtype=self._wide))
            self.write_offset = nn.Parameter(torch.full(written, logit(config.write_init), dtype=self._wide))
        if config.density == "gibbs":
            return
        generator = torch.Generator().manual_seed(0)

        def affine() -> nn.Parameter:
            drawn = torch.rand(*heads, size, generator=generator, dtype=torch.float64) * 2 - 1
            return nn.Parameter((drawn * size**-0.5).to(self._wide))

        self.mean, self.mean_bias = affine(), nn.Parameter(torch.zeros(heads, dtype=self._wide))
        self.spread, self.spread_bias = affine(), nn.Parameter(torch.zeros(heads, dtype=self._wide))

    def spec(self) -> Spec:
        """N coefficients of keys and of values for every key/value head; where queries have looked, if that matters."""
        config, model, count = self.config, self._model, len(self._layers)
        coefficients = TensorSpec((count, model.num_kv_heads, config.basis, model.head_dim), self._wide)
        longest = TensorSpec((count, model.num_kv_heads, 2), self._wide)
        spec = {"continuous_keys": coefficients, "continuous_values": coefficients, "continuous_longest": longest}
        if config.sticky:
            spec["continuous_looked"] = TensorSpec((count, config.bins), self._wide)
        return spec

    def reads(self, layer: int) -> bool:
        """See `Memory.reads`."""
        return layer in self._layers

    def read(self, layer: int, state: MemoryState, asked: Asked) -> Far | Beside | None:
        """The expectation of the values' signal under each query's density."""
        filled = [count > self.config.sinks for count in asked.folded]
        if layer not in self._layers or not any(filled):
            return None
        index = self._layers[layer]
        rows = None if all(filled) else torch.tensor(filled, device=state.device)
        gate = self.gate[index].sigmoid().view(-1, self._model.queries_per_kv, 1, 1)
        if self.config.density == "gibbs":
            out, mass = self._attend(index, state, asked.far)
            return Beside(self._heads, out, mass=mass, gate=gate, filled=rows)
        mean, variance = self._density(index, state.read("continuous_keys", index), asked.plain.to(self._wide))
        expected = self._expected(mean, variance)  # (B, K, G, t, N)
        out = expected.flatten(2, 3) @ state.read("continuous_values", index)  # (B, K, G*t, d)
        if self.config.sticky:
            self._look(index, state, mean, variance, rows)
        if self.losses is not None:
            self.losses.append(self._prior(variance if rows is None else variance[rows]))
        return Beside(self._heads, out.view(asked.plain.shape), gate=gate, added=True, filled=rows)

    def fold(self, layer: int, state: MemoryState, evicted: Evicted) -> None:
        """Contract the old signal, lay the evicted tokens behind it, and fit both."""
        if layer not in self._layers:
            return
        index = self._layers[layer]
        fresh = evicted.starts <= self.config.sinks  # only sinks, which do not count, have left the ring before
        taken = torch.where(fresh[:, None, None], self._take_first, self._take)  # (B, S, N)
        taken = (taken * evicted.counted[..., None]).transpose(1, 2)[:, None]
        sampled = self._sampled(index, state)  # (samples, N), or (B, 1, samples, N)
        longest = state.read("continuous_longest", index)  # (B, K, 2)
        strength = self._strength(index, evicted, fresh) if self.config.gated else None
        lengths = []
        for kind, (name, signal) in enumerate((("keys", evicted.keys), ("values", evicted.values))):
            new, before = signal.to(self._wide), state.read(f"continuous_{name}", index)
            old = sampled @ before  # (B, K, samples, d), zero if nothing was folded
            old = old * _shrink(old, longest[..., kind])
            after = self._carry @ old + taken @ new
            state.write(f"continuous_{name}", after if strength is None else torch.lerp(before, after, strength), index)
            counted = new.detach().norm(dim=-1) * evicted.counted[:, None]
            lengths.append(counted.amax(dim=-1))
        state.write("continuous_longest", torch.maximum(longest, torch.stack(lengths, dim=-1)), index)

    def report(self, state: MemoryState) -> Report:
        """Coefficients by layer: all of them are in use from the first fold on."""
        basis = self.config.basis
        keys = state.read("continuous_keys")[0]  # (layers, K, N, d)
        used = (keys != 0).any(dim=-1).sum(dim=(1, 2)).tolist()
        heads = tuple(self._heads)
        return Report(tuple(LayerReport(layer, heads, basis, used[index]) for layer, index in self._layers.items()))

    def _lay_out(self) -> None:
        """What follows from the settings alone: the basis, and the regressions' matrices (computed in float64)."""
        config = self.config
        count, segment = config.samples, config.segment
        centres = torch.linspace(0, 1, config.basis // len(config.widths), dtype=torch.float64)
        self._keep("_centres", centres)
        self._keep("_variances", torch.tensor(config.widths, dtype=torch.float64).square())
        levels = torch.arange(1, count + 1, dtype=torch.float64) / count
        self._keep("_levels", levels)
        self._keep("_edges", torch.linspace(0, 1, config.bins + 1, dtype=torch.float64))
        # The sinks do not count, so the first tokens that do are fewer, unless a whole segment was sinks.
        first = segment - config.sinks or segment
        middles = (torch.arange(first, dtype=torch.float64) + 0.5) / first
        self._keep("_take_first", F.pad(self._regression(middles), (0, 0, segment - first, 0)))
        behind = config.tau + (1 - config.tau) * torch.arange(1, segment + 1, dtype=torch.float64) / segment
        both = self._regression(torch.cat((levels * config.tau, behind)))
        self._keep("_samples", self._basis(levels))
        self._keep("_carry", both[:count].T.contiguous())
        self._keep("_take", both[count:])
        self.to(self._wide)

    def _keep(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(name, tensor, persistent=False)

    def _basis(self, positions: Tensor) -> Tensor:
        """ψ at positions (..., n): (..., n, N)."""
        return self._expected(positions, torch.zeros_like(positions))

    def _expected(self, mean: Tensor, variance: Tensor) -> Tensor:
        """E[ψ] under N(mean, variance), each (..., n): (..., n, N). A normal density averaged by a normal one is normal."""
        precision = 1 / (variance[..., None] + self._variances)  # (..., n, widths)
        away = (mean[..., None] - self._centres).square()  # (..., n, centres)
        height = (precision / (2 * torch.pi)).sqrt()
        bells = torch.exp(-0.5 * away[..., None] * precision[..., None, :]) * height[..., None, :]
        return bells.flatten(-2)

    def _regression(self, positions: Tensor) -> Tensor:
        """The paper's G for n positions (n,): B = Gᵀ X, so (n, N). Half as many points on either side hold nothing."""
        count = len(positions)
        beyond = (torch.arange(count // 2, dtype=positions.dtype) + 0.5) / count
        functions = self._basis(torch.cat((-beyond, positions, 1 + beyond)))  # (P, N), Fᵀ of the paper
        normal = functions.T @ functions + self.config.ridge * torch.eye(self.config.basis, dtype=positions.dtype)
        fitted: Tensor = torch.linalg.solve(normal, self._basis(positions).T)
        return fitted.T

    def _attend(self, index: int, state: MemoryState, query: Tensor) -> tuple[Tensor, Tensor]:
        """The softmax of query (B, K, G, t, d) on the signal: (B, K, G, t, d), and its log-sum-exp (B, K, G, t), both wide."""
        keys, values = state.read("continuous_keys", index), state.read("continuous_values", index)  # (B, K, N, d)
        points = self._samples  # (samples, N)
        if query.shape[2] * query.shape[3] >= query.shape[4]:
            sampled = ((points @ signal).to(query.dtype) for signal in (keys, values))
            out, mass = attend_with_mass(query, *sampled)
            return out.to(self._wide), mass
        flat = query.flatten(2, 3).to(self._wide)  # for few queries it is quicker to lay out no points
        scores = (flat @ keys.transpose(-1, -2)) @ points.T * query.shape[-1] ** -0.5  # (B, K, G*t, samples)
        out = (scores.softmax(dim=-1) @ points) @ values
        return out.view(query.shape), scores.logsumexp(dim=-1).view(query.shape[:-1])

    def _strength(self, index: int, evicted: Evicted, fresh: Tensor) -> Tensor:
        """Whether a fold happens, by head, (B, K, 1, 1): 1 or 0; the first one does."""
        seen = torch.cat((evicted.keys.to(self._wide), evicted.values.to(self._wide)), dim=-1)  # (B, K, S, 2d)
        calls = (seen @ self.write_weight[index, :, :, None]).squeeze(-1) + self.write_offset[index, :, None]
        calls = calls.masked_fill(~evicted.counted[:, None], torch.finfo(calls.dtype).min)
        # The mean of their odds: of the greatest call alone nothing could be learned but for the token that it is from, which in
        # monotonous text stands in every segment.
        count = evicted.counted.sum(dim=-1).clamp_min(1).to(calls.dtype)  # (B,)
        calls = calls.logsumexp(dim=-1) - count.log()[:, None]  # (B, K)
        strength = self._decided(calls, evicted.starts, len(self._layers))
        return strength.masked_fill(fresh[:, None], 1)[..., None, None]

    def _density(self, index: int, keys: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (B, K, G, t) of each query's Gaussian, for keys (B, K, N, d), query (B, K, G, t, d).

        Both are affine in the scores q·K_n/√d over the N coefficients: the sum over n is taken first, which leaves one
        vector a head and needs no scores.
        """
        model, shape = self._model, (self._model.num_kv_heads, self._model.queries_per_kv)

        def affine(weight: Tensor, bias: Tensor) -> Tensor:
            direction: Tensor = weight[index].view(*shape, -1) @ keys * model.head_dim**-0.5  # (B, K, G, d)
            return (query @ direction[..., None])[..., 0] + bias[index].view(*shape, 1)

        mean = affine(self.mean, self.mean_bias).sigmoid()
        variance = F.softplus(affine(self.spread, self.spread_bias)).clamp_min(self.config.min_variance)
        return mean, variance

    def _prior(self, variance: Tensor) -> Tensor:
        """KL divergence of the densities from ones of the prior's width, weighted."""
        ratio = variance / self.config.prior_width**2
        return self.config.prior_weight * 0.5 * (ratio - ratio.log() - 1).mean()

    @torch.no_grad()
    def _look(self, index: int, state: MemoryState, mean: Tensor, variance: Tensor, rows: Tensor | None) -> None:
        """Add to the histogram how much of each density lies in each bin, over all heads and queries."""
        below = torch.erf((self._edges - mean[..., None]) / (2 * variance[..., None]).sqrt())
        mass = 0.5 * below.sum(dim=(1, 2, 3)).diff(dim=-1)  # (B, bins)
        if rows is not None:
            mass = mass * rows[:, None]
        state.write("continuous_looked", state.read("continuous_looked", index) + mass, index)

    def _sampled(self, index: int, state: MemoryState) -> Tensor:
        """ψ at the points where the old signal is sampled. Where that follows the histogram, it starts anew."""
        if not self.config.sticky:
            return self._samples
        looked = state.read("continuous_looked", index)
        sampled = self._basis(self._quantiles(looked))[:, None]
        state.write("continuous_looked", torch.zeros_like(looked), index)
        return sampled

    def _quantiles(self, looked: Tensor) -> Tensor:
        """Where the histogram (B, bins) reaches 1/n, 2/n, … 1: (B, n). Evenly spaced where it is empty."""
        bins, total = self.config.bins, looked.sum(dim=-1, keepdim=True)
        even = torch.full_like(looked, 1 / bins)
        share = torch.where(total > 0, looked / total.clamp_min(torch.finfo(looked.dtype).tiny), even)
        share = (1 - _UNIFORM) * share + _UNIFORM * even
        reached = F.pad(share.cumsum(dim=-1), (1, 0))  # (B, bins + 1)
        levels = self._levels * reached[:, -1:]
        place = torch.searchsorted(reached[:, 1:].contiguous(), levels).clamp_max(bins - 1)
        inside = (levels - reached.gather(-1, place)) / share.gather(-1, place)
        return (place + inside) / bins


@torch.no_grad()
def _shrink(samples: Tensor, longest: Tensor) -> Tensor:
    """What samples (B, K, n, d) are multiplied with, (B, K, n, 1), so that none is longer than any token was: (B, K).

    A fit overshoots its points, by a tenth beside a step, by more where points are few. Where the same overshoot is
    sampled again at every fold, as sticky memories may, the signal would otherwise grow without bound.
    """
    length: Tensor = samples.norm(dim=-1)
    factor = longest[..., None] / length.clamp_min(torch.finfo(length.dtype).tiny)  # (B, K, n)
    return factor.clamp_max(1)[..., None]


MECHANISM = Mechanism("continuous", ContinuousConfig, Continuous)
