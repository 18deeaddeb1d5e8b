"""A decision that is one thing or the other, and is learned as if it were a share of both."""

from __future__ import annotations

from torch import Tensor


def decision(call: Tensor) -> Tensor:
    """1 for a call above 0, else 0, which to a gradient is the call's sigmoid."""
    slope = (call.sigmoid() * (1 - call.sigmoid())).detach()
    return (call > 0).to(call.dtype) + slope * (call - call.detach())
