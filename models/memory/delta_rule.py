"""The gated delta rule over many tokens at once, equal to taking them one by one.

For a token with key k (of length 1), value v, write strength b and decay a, the rule is
M ← a M + bkᵀ(v − a k M) (Gated DeltaNet, arXiv 2412.06464): what the memory returns for k moves towards v, and nothing else
changes but by the decay. Within a chunk the tokens' corrections solve one triangular system (arXiv 2406.06484), so that only
the chunks follow one another.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64


def gated_delta_rule(
    memory: Tensor, keys: Tensor, values: Tensor, write: Tensor, log_decay: Tensor, chunk: int = CHUNK
) -> Tensor:
    """The memory (B, K, d, d) after keys and values (B, K, S, d), with write and log_decay (B, K, S). All of it wide.

    A token with write 0 and log_decay 0 changes nothing. Any S, and any `chunk`, give the same memory.
    """
    chunk = min(chunk, keys.shape[2])
    keys, values = _chunks(keys, chunk), _chunks(values, chunk)  # (B, K, n, C, d)
    write = _chunks(write[..., None], chunk)  # (B, K, n, C, 1)
    since = _chunks(log_decay[..., None], chunk).cumsum(dim=3)  # log of what is left of what stood before the chunk
    left = since[..., -1:, :]  # (B, K, n, 1, 1) the same, at the chunk's end
    # Later rows over earlier columns only: above the diagonal the exponent is positive and could overflow.
    earlier = torch.ones(chunk, chunk, dtype=torch.bool, device=keys.device).tril(-1)
    between = (since - since.transpose(-1, -2)).masked_fill(~earlier, -torch.inf).exp()  # (B, K, n, C, C)
    system = write * (keys @ keys.transpose(-1, -2)) * between
    wanted = write * torch.cat((values, since.exp() * keys), dim=-1)
    solved = torch.linalg.solve_triangular(system, wanted, upper=False, unitriangular=True)
    added, removed = solved.split((values.shape[-1], keys.shape[-1]), dim=-1)
    remaining = ((left - since).exp() * keys).transpose(-1, -2)  # (B, K, n, d, C)
    for part in range(keys.shape[2]):
        correction = added[:, :, part] - removed[:, :, part] @ memory  # (B, K, C, d)
        memory = left[:, :, part].exp() * memory + remaining[:, :, part] @ correction
    return memory


def _chunks(x: Tensor, chunk: int) -> Tensor:
    """x (B, K, S, e) as (B, K, n, C, e), the last chunk filled up with tokens that change nothing."""
    chunks: Tensor = F.pad(x, (0, 0, 0, -x.shape[2] % chunk)).unflatten(2, (-1, chunk))
    return chunks
