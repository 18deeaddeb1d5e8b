"""The presses that are measured, each told how much it may keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import kvpress
import numpy as np

from bench.presses.reader import Press
from models.calibration import find_calibration
from models.weights.checkpoint import Checkpoint


def presses(checkpoint: Checkpoint) -> Mapping[str, Press]:
    """By name. KVzap and Fast KVzip are not among them: they fetch networks that were trained for other models."""
    scores = np.zeros((checkpoint.config.num_layers, checkpoint.config.num_kv_heads))
    calibration = find_calibration(checkpoint.fingerprint)
    for layer, head, score in calibration.heads if calibration is not None else ():
        scores[layer, head] = score

    def duo(length: int, fits: float) -> Any:
        recent = DuoAttention.sinks + DuoAttention.recent
        share = (fits - recent) / max(length - recent, 1)  # of the heads, that may keep the whole text
        return DuoAttention(scores, min(max(1 - share, 0.0), 1.0))

    return {
        "ExpectedAttention": lambda length, fits: kvpress.ExpectedAttentionPress(_dropped(length, fits)),
        "AdaKV ExpectedAttention": lambda length, fits: kvpress.AdaKVPress(
            kvpress.ExpectedAttentionPress(_dropped(length, fits), epsilon=1e-2)
        ),
        "KeyDiff": lambda length, fits: kvpress.KeyDiffPress(_dropped(length, fits)),
        "Leverage": lambda length, fits: kvpress.LeverageScorePress(_dropped(length, fits)),
        "Compactor": lambda length, fits: kvpress.CompactorPress(_dropped(length, fits)),
        "SnapKV": lambda length, fits: kvpress.SnapKVPress(_dropped(length, fits)),
        "KVzip": lambda length, fits: kvpress.KVzipPress(_dropped(length, fits)),
        "DuoAttention": duo,
    }


class DuoAttention(kvpress.DuoAttentionPress):  # type: ignore[misc]
    """DuoAttention with the retrieval heads of our calibration: its authors publish those of a few larger models alone."""

    sinks, recent = 4, 256

    def __init__(self, scores: np.ndarray[Any, Any], streaming: float) -> None:
        super().__init__(head_compression_ratio=streaming)
        self._scores = scores

    def load_attention_pattern(self, model: Any) -> tuple[int, int, np.ndarray[Any, Any]]:
        """Sinks and recent tokens of streaming heads, and what each head is worth."""
        return self.sinks, self.recent, self._scores


def _dropped(length: int, fits: float) -> float:
    """The share of tokens that must go."""
    return max(0.0, 1 - fits / length)
