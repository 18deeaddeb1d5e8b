"""AdamW in two groups: gates need a learning rate of their own, or they never leave where they begin."""

from __future__ import annotations

import torch
from torch import nn

from models.adapt.settings import TrainSettings
from models.transformer import Decoder


def build_optimizer(decoder: Decoder, settings: TrainSettings) -> torch.optim.AdamW:
    """For all that asks for gradients: the memory's gates and biases, its other parameters, then the model's weights.

    Gates and norms do not decay.
    """
    by_head = {decoder.config.num_heads, decoder.config.num_kv_heads}
    memory = [weight for weight in decoder.memory.parameters() if weight.requires_grad]
    gates = [weight for weight in memory if _is_gate(weight, by_head)]
    maps = [weight for weight in memory if not _is_gate(weight, by_head)]
    rest = [weight for weight in decoder.weights.parameters() if weight.requires_grad]
    groups = [
        _group(gates, settings.gate_learning_rate, 0.0),
        _group(maps, settings.memory_learning_rate or settings.learning_rate, settings.weight_decay),
        _group([weight for weight in rest if weight.dim() > 1], settings.learning_rate, settings.weight_decay),
        _group([weight for weight in rest if weight.dim() == 1], settings.learning_rate, 0.0),
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=(0.9, 0.98))


def warm_up(optimizer: torch.optim.Optimizer, settings: TrainSettings, step: int) -> None:
    """Set the learning rates for a step: from nothing to full over the first `warmup` steps."""
    share = min(1.0, (step + 1) / (settings.warmup + 1))
    for group in optimizer.param_groups:
        group["lr"] = group["full"] * share


def _is_gate(weight: nn.Parameter, by_head: set[int]) -> bool:
    """Whether these are single numbers by layer and head: (layers, H)."""
    return weight.dim() == 2 and weight.shape[1] in by_head


def _group(weights: list[nn.Parameter], rate: float, decay: float) -> dict[str, object]:
    return {"params": weights, "lr": rate, "full": rate, "weight_decay": decay}
