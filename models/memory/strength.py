"""Whether and how strongly something is written: what the memories share that learn it."""

from __future__ import annotations

import math

from torch import Tensor

from models.errors import ConfigError


def check_writing(init: float, cost: float, floor: float = 0.0) -> None:
    """Raises `ConfigError` for a strength before training, a floor, or a price of writing that cannot be."""
    if not 0 < init < 1:
        raise ConfigError(f"write_init must lie between 0 and 1, both excluded, not {init}")
    if not 0 <= floor < 1:
        raise ConfigError(f"write_floor must be 0 or more and less than 1, not {floor}")
    if not 0 <= cost < math.inf:
        raise ConfigError(f"write_cost must be 0 or more nats, not {cost}")


def above(share: Tensor, floor: float) -> Tensor:
    """The share, 0 below the floor and from there on stretched, so that it has no jump: a sigmoid alone never reaches 0."""
    return ((share - floor) / (1 - floor)).relu() if floor else share


def decided(calls: Tensor) -> Tensor:
    """1 where a call is above 0, else 0. Its gradient is the sigmoid's: the straight-through estimator of arXiv 1308.3432."""
    share = calls.sigmoid()
    return (calls > 0).to(share.dtype) + (share - share.detach())


def logit(share: float) -> float:
    """Where the sigmoid is `share`."""
    return math.log(share / (1 - share))
