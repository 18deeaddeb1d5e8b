"""Attention to the k keys that score highest: where entries are thousands, a softmax over all of them is mostly of the rest."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models import native
from models.layers import wide

_SCORES = 2**22
"""Scores that are laid out at a time, about: longer chunks are searched in parts."""


def attend_nearest(
    query: Tensor, keys: Tensor, values: Tensor, nearest: int, filled: list[int], *, scaled: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention of query (B, K, G, t, d) to the `nearest` of keys (B, K, C, d), searched exactly, and their values (B, K, C, d).

    Gives the answer (B, K, G, t, d) and the log-sum-exp of its scores (B, K, G, t), both wide. `filled` says how many entries from
    the front each row has; what a row without any gets is finite, or nothing with a mass of -inf. Scores are scaled by 1/√d unless
    the query is `scaled` already.
    """
    counts = None if min(filled) == max(filled) else torch.tensor(filled, device=keys.device)
    if not scaled and native.suits_nearest(query, keys, values):
        out, mass = native.attend_nearest(query.flatten(2, 3), keys, values, nearest, counts)
        return out.view(query.shape), mass.view(query.shape[:-1])
    dtype = wide(query.dtype)
    asking, keys = query.to(dtype), keys.to(dtype)
    asking = asking if scaled else asking / math.sqrt(query.shape[-1])
    rows = max(1, _SCORES // (asking[..., 0, 0].numel() * keys.shape[2]))
    parts = [_search(part, keys, values, nearest, counts) for part in asking.split(rows, dim=3)]
    out, mass = (torch.cat(part, dim=3) if len(part) > 1 else part[0] for part in zip(*parts, strict=True))
    return out, mass


def _search(query: Tensor, keys: Tensor, values: Tensor, nearest: int, counts: Tensor | None) -> tuple[Tensor, Tensor]:
    """`attend_nearest` for queries that are scaled; `counts` (B,) says how many entries are filled, None: all."""
    scores = query.flatten(2, 3) @ keys.transpose(-1, -2)  # (B, K, G*t, C)
    if counts is not None:
        empty = torch.arange(keys.shape[2], device=keys.device) >= counts[:, None, None, None]
        scores = scores.masked_fill(empty, torch.finfo(scores.dtype).min)
    best, chosen = scores.topk(min(nearest, keys.shape[2]), dim=-1, sorted=False)  # (B, K, G*t, k)
    rows = torch.arange(keys.shape[0], device=keys.device)[:, None, None, None]
    heads = torch.arange(keys.shape[1], device=keys.device)[:, None, None]
    found = values[rows, heads, chosen].to(scores.dtype)  # (B, K, G*t, k, d)
    out = (best.softmax(dim=-1)[..., None, :] @ found).squeeze(-2)
    return out.view(query.shape), best.logsumexp(dim=-1).view(query.shape[:-1])
