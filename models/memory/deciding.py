"""Memories that decide what they write: what `feedback` and `continuous` share, where they are `gated`."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from models.errors import ConfigError
from models.memory.base import LayeredConfig, Memory
from models.memory.strength import check_writing


@dataclass(frozen=True)
class DecidingConfig(LayeredConfig):
    """`gated` learns which writes happen; the first of a session always does. The others are for `gated` alone.

    `write_init` is the sigmoid of what calls for a write before training: above .5 all writes happen. `write_cost` is, in training,
    the price in nats of a segment that is written everywhere, and `write_taught` the weight of the calls' cross-entropy with what a
    task marks as worth writing; above 0 what is marked is written in training, and nothing else (teacher forcing).
    """

    gated: bool = False
    write_init: float = 0.6
    write_cost: float = 0.0
    write_taught: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_writing(self.write_init, self.write_cost)
        if not 0 <= self.write_taught < float("inf"):
            raise ConfigError(f"write_taught must be 0 (for not at all) or above, not {self.write_taught}")


class DecidingMemory(Memory):
    """A memory whose writes happen or do not."""

    config: DecidingConfig

    def _decided(self, calls: Tensor, starts: Tensor, layers: int, due: Tensor | None = None) -> Tensor:
        """1 where the segment from position `starts` (B,) on is written, else 0, for calls (B, n) of one of `layers` layers. `due`
        (B, n), bool, is what the calls are told where a task marks something; None: a segment that has any of it is due whole.

        From the answers alone it is hardly learned what calls for a write: one that is left out says nothing about what it would
        have been good for, and what is written everywhere soon holds nothing. Where a task marks what it will ask for, the calls
        can be told.
        """
        config, strength = self.config, decided(calls)
        if self.losses is None:
            return strength
        if self.marked is not None and config.write_taught:
            if due is None:
                due = self.marked.within(starts, config.segment)[:, None].expand_as(calls)
            strength = due.to(calls.dtype)
            missed = F.binary_cross_entropy_with_logits(calls, strength)
            self.losses.append(config.write_taught / layers * missed)
        if config.write_cost:
            self.losses.append(config.write_cost / layers * strength.mean())
        return strength


def decided(calls: Tensor) -> Tensor:
    """1 where a call is above 0, else 0. Its gradient is the sigmoid's: the straight-through estimator of arXiv 1308.3432."""
    share = calls.sigmoid()
    return (calls > 0).to(share.dtype) + (share - share.detach())
