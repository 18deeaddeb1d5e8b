"""∞-former (arXiv 2109.00301): a signal over [0, 1], fitted anew at every fold, and read with a Gaussian density.

`gibbs` as in ∞-Video (arXiv 2501.19098), whose points are joined with the ring. Not the papers': keys and values are fitted,
where they fit hidden vectors and project; a gate; no sample is longer than the longest token was; how much of a fold happens may
be learned; a sticky memory's samples are quantiles, where it draws them, and a hundredth of them lies evenly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.memory.continuous import ContinuousConfig
from tests.models.references.decision import decision
from tests.models.references.window import Reference


class ContinuousReference(Reference):
    """`keys_of` and `values_of` hold each layer's coefficients (K, N, d) once it has any."""

    memory: ContinuousConfig

    def begin(self) -> None:
        """There is no signal, and nobody has looked at it. The basis follows from the settings."""
        memory = self.memory
        self.keys_of: dict[int, Tensor] = {}
        self.values_of: dict[int, Tensor] = {}
        self.looked = {layer: torch.zeros(memory.bins, dtype=torch.float64) for layer in self.layers}
        width_count = len(memory.widths)
        last = memory.basis // width_count - 1
        self.centres = double([index // width_count / last for index in range(memory.basis)])
        self.widths = double([memory.widths[index % width_count] for index in range(memory.basis)])
        self.edges = double([index / memory.bins for index in range(memory.bins + 1)])

    def attend(self, layer: int, index: int, query: Tensor) -> Tensor:
        """The ring's answer, and the gated expectation of the signal under this query's density."""
        near = super().attend(layer, index, query)
        if layer not in self.keys_of:
            return near
        if self.memory.density == "gibbs":
            return self.attend_to_points(layer, index, query)
        row, head = self.layers.index(layer), self.group(index)
        scores = self.keys_of[layer][head] @ query / len(query) ** 0.5  # (N,)

        def affine(name: str) -> Tensor:
            product: Tensor = scores @ self.parameters[name][row, index]
            return product + self.parameters[f"{name}_bias"][row, index]

        mean = 1 / (1 + torch.exp(-affine("mean")))
        variance = torch.clamp(torch.log1p(torch.exp(affine("spread"))), min=self.memory.min_variance)
        self.looked[layer] += torch.erf((self.edges - mean) / (2 * variance).sqrt()).diff().detach() / 2
        # The product of two normal densities integrates to a normal density at the distance of their means.
        expected = normal(mean - self.centres, variance + self.widths**2)  # (N,)
        gate = 1 / (1 + torch.exp(-self.parameters["gate"][row, index]))
        far: Tensor = gate * (expected @ self.values_of[layer][head])
        return near + far

    def attend_to_points(self, layer: int, index: int, query: Tensor) -> Tensor:
        """One softmax over the ring and points of the signal at distance W; the gate keeps its part of what these get."""
        near, near_values = self.near(layer, index, query)
        head, gate = self.group(index), self.parameters["gate"][self.layers.index(layer), index].sigmoid()
        points = self.functions(self.points([1.0]))
        keys, values = points @ self.keys_of[layer][head], points @ self.values_of[layer][head]
        far = keys @ self.turn(query, self.memory.window) / len(query) ** 0.5
        weights = torch.cat((near, far)).softmax(0)
        ring, kept = weights[: len(near)], weights[len(near) :] * gate
        return ring / ring.sum() * (1 - kept.sum()) @ near_values + kept @ values

    def called(self, layer: int, places: range) -> Tensor:
        """Whether a fold happens, by key/value head: if it does on average of the odds that each token gives it."""
        keys, values = (torch.stack([kept[layer][place] for place in places]) for kept in (self.keys, self.values))
        row = self.layers.index(layer)
        weight, offset = self.parameters["write_weight"][row], self.parameters["write_offset"][row]
        calls = (torch.cat((keys, values), dim=-1) * weight).sum(dim=-1) + offset  # (n, K)
        return decision(calls.exp().mean(dim=0).log())

    def fold(self, layer: int, start: int) -> None:
        """The old signal into [0, τ], the segment behind it."""
        memory = self.memory
        places = range(max(start, memory.sinks), start + memory.segment)
        if layer not in self.layers or not places:
            return
        points = self.points(self.looked[layer].tolist()) if memory.sticky else self.points([1.0])
        self.looked[layer] = torch.zeros_like(self.looked[layer])
        for tokens, fitted in ((self.keys[layer], self.keys_of), (self.values[layer], self.values_of)):
            new = torch.stack([tokens[place] for place in places], dim=1)  # (K, n, d)
            old = None
            if layer in fitted:
                old = self.functions(points) @ fitted[layer]  # (K, samples, d)
                seen = torch.stack(tokens[memory.sinks : start], dim=1).norm(dim=-1).amax(dim=1)  # (K,)
                old = old * (seen[:, None] / old.norm(dim=-1)).clamp(max=1).detach()[..., None]
            after = self.fit(old, new)
            if layer in fitted and memory.gated:
                part = self.called(layer, places)[:, None, None]
                after = (1 - part) * fitted[layer] + part * after
            fitted[layer] = after

    def fit(self, old: Tensor | None, new: Tensor) -> Tensor:
        """Ridge regression on samples of the old signal and new tokens (K, n, d), with nothing on either side of [0, 1]."""
        memory, count = self.memory, new.shape[1]
        if old is None:
            positions = [(index + 0.5) / count for index in range(count)]
            data = new
        else:
            positions = [memory.tau * (index + 1) / memory.samples for index in range(memory.samples)]
            positions += [memory.tau + (1 - memory.tau) * (index + 1) / count for index in range(count)]
            data = torch.cat((old, new), dim=1)
        total = len(positions)
        for index in range(total // 2):
            positions += [-(index + 0.5) / total, 1 + (index + 0.5) / total]
        data = torch.cat((data, torch.zeros(data.shape[0], len(positions) - total, data.shape[2])), dim=1)
        design = self.functions(double(positions))  # (P, N)
        ridge = memory.ridge * torch.eye(memory.basis, dtype=torch.float64)
        fitted: Tensor = torch.linalg.solve(design.T @ design + ridge, design.T @ data)
        return fitted

    def functions(self, positions: Tensor) -> Tensor:
        """ψ (n, N) at positions (n,)."""
        return normal(positions[:, None] - self.centres, self.widths**2)

    def points(self, looked: list[float]) -> Tensor:
        """Where a histogram, with a hundredth of it spread evenly, has reached 1/n, 2/n, … of its mass."""
        count, bins = self.memory.samples, len(looked)
        share = [0.99 * mass / sum(looked) + 0.01 / bins for mass in looked] if sum(looked) else [1 / bins] * bins
        total, found, reached, place = sum(share), [], 0.0, 0
        for index in range(count):
            level = (index + 1) / count * total
            while place < bins - 1 and reached + share[place] < level:
                reached += share[place]
                place += 1
            found.append((place + (level - reached) / share[place]) / bins)
        return double(found)


def double(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def normal(away: Tensor, variance: Tensor) -> Tensor:
    """The normal density of that variance at a distance from its mean."""
    return torch.exp(-(away**2) / (2 * variance)) / torch.sqrt(2 * torch.pi * variance)
