"""What a model is and what a memory is: frozen values, validated where they are made."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import ClassVar

from models.errors import ConfigError


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3 frequency scaling (`rope_type: llama3` of a Hugging Face config).

    Low frequencies are divided by `factor`, high ones are kept, those between are blended.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True)
class ModelConfig:
    """A Llama-architecture decoder. All sizes are counts of elements."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    trained_context: int
    tie_word_embeddings: bool
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"{self.num_heads} query heads cannot share {self.num_kv_heads} key/value heads evenly")
        if self.head_dim % 2:
            raise ConfigError(f"rotary embedding needs an even head size, not {self.head_dim}")

    @property
    def queries_per_kv(self) -> int:
        """Query heads that share one key/value head (H / K)."""
        return self.num_heads // self.num_kv_heads


@dataclass(frozen=True)
class MemoryConfig:
    """What every mechanism shares: an exact local window and a fold length.

    `window` W and `segment` S are in tokens; the local ring holds between W and W + S of them. `sinks` first
    tokens of a session stay visible for ever (StreamingLLM, arXiv 2309.17453).
    """

    window: int = 512
    segment: int = 256
    sinks: int = 4

    by_segment: ClassVar[bool] = False
    """Whether whole segments are what the memory looks at, so that what was taught with segments of one length is right for that
    length: adapters then prescribe it, unless another is asked for."""

    def __post_init__(self) -> None:
        if self.segment < 1 or self.window < self.segment or self.window % self.segment:
            raise ConfigError(f"the window ({self.window}) must be a positive multiple of the segment ({self.segment})")
        if not 0 <= self.sinks <= self.segment:
            raise ConfigError(f"sinks ({self.sinks}) must lie between 0 and the segment ({self.segment})")

    @property
    def ring(self) -> int:
        """Tokens the local ring can hold: W + S."""
        return self.window + self.segment

    def evicted(self, position: int) -> int:
        """Tokens that have left the ring of a session at this position: a multiple of S."""
        return max(0, position // self.segment * self.segment - self.window)

    def depth(self, model: ModelConfig) -> int:
        """How many layers, from the first, the memory has to do with: what the others compute is nothing to it."""
        return model.num_layers


def fingerprint(*parts: object) -> str:
    """A short stable name for a configuration: 128 bits of SHA-256 over its JSON, in hex."""
    plain = [asdict(part) if hasattr(part, "__dataclass_fields__") else part for part in parts]  # type: ignore[call-overload]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:32]
