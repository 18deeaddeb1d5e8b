"""State to bytes and back, so that a session can be parked anywhere.

    magic "PLMP" | format version u16 | header length u32 | header (msgpack) | raw tensors | xxh3-128 of all before

The header names the model, the memory and every tensor with dtype, shape and size; the tensors follow in that order, little-endian
and row-major. Nothing is executed on reading, and nothing is allocated before sizes agree with what the caller expects.
The digest finds damage, not forgery.
"""

from __future__ import annotations

import math
import struct
import sys
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import torch
import xxhash
from torch import Tensor

from models.errors import StateError
from models.state import MemoryState, Spec

MAGIC = b"PLMP"
VERSION = 1
_PREFIX = struct.Struct("<4sHI")
_DIGEST_BYTES = 16
_MAX_HEADER = 1 << 20
_TOKEN_IDS = ("tokens", "slot_token")


@dataclass(frozen=True)
class StateKind:
    """What a saved state must match to be loaded: the model's and the memory's fingerprint, and the tensors."""

    model: str
    memory: str
    spec: Spec


def encode_state(state: MemoryState, kind: StateKind) -> bytes:
    """One session's state (batch 1, any device) as bytes."""
    if state.batch != 1:
        raise ValueError(f"encode one session at a time, not {state.batch}")
    assert sys.byteorder == "little", "saved states are little-endian"
    tensors = {name: tensor[0].contiguous().cpu() for name, tensor in state.tensors().items()}
    header = {
        "model": kind.model,
        "memory": kind.memory,
        "position": int(tensors["position"].item()),
        "tensors": [[name, _dtype_name(t), list(t.shape), t.nbytes] for name, t in tensors.items()],
    }
    packed = msgpack.packb(header)
    digest = xxhash.xxh3_128()
    parts = [_PREFIX.pack(MAGIC, VERSION, len(packed)), packed, *(_raw(t) for t in tensors.values())]
    for part in parts:
        digest.update(part)
    return b"".join([*parts, digest.digest()])


def decode_state(data: bytes, kind: StateKind, device: torch.device | str = "cpu") -> MemoryState:
    """The state again, batch 1, on `device`.

    Raises `StateError` when the bytes are not a state, truncated, altered, of another format version, model or memory.
    """
    header, offset = _read_header(data)
    if header["model"] != kind.model:
        raise StateError(
            f"this state was made by another model (fingerprint {header['model']}, here {kind.model}): "
            "serve the model that made it"
        )
    if header["memory"] != kind.memory:
        raise StateError(
            f"this state was made by another memory configuration (fingerprint {header['memory']}, here "
            f"{kind.memory}): serve it with the settings that made it"
        )
    expected = [[name, str(t.dtype).removeprefix("torch."), list(t.shape), t.nbytes] for name, t in kind.spec.items()]
    if header["tensors"] != expected:
        raise StateError("the tensors of this state are not those its fingerprint stands for: it was altered")
    tensors: dict[str, Tensor] = {}
    for name, tensor in kind.spec.items():
        count = math.prod(tensor.shape)
        raw = np.frombuffer(data, np.uint8, tensor.nbytes, offset).copy()
        offset += tensor.nbytes
        whole = torch.from_numpy(raw).view(tensor.dtype) if count else torch.empty(0, dtype=tensor.dtype)
        tensors[name] = whole.reshape(1, *tensor.shape).to(device)
    return MemoryState(tensors)


def check_values(state: MemoryState, spec: Spec, vocabulary: int) -> None:
    """Raise `StateError` when a state holds numbers that no reading of text could have left there.

    Floats must be finite, but for the minus infinity that a spec fills empty places with; token ids must be below `vocabulary`.
    """
    for name, tensor in state.tensors().items():
        if tensor.is_floating_point():
            sound = torch.isfinite(tensor)
            if spec[name].fill == -math.inf:
                sound |= tensor == -math.inf
            if not bool(sound.all()):
                raise StateError(
                    f"the saved state's {name} holds infinities or NaN: a fault made it, or it was altered"
                )
        elif name in _TOKEN_IDS and tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) < vocabulary:
            raise StateError(f"the saved state's {name} holds ids that are not in this model's vocabulary")


def _read_header(data: bytes) -> tuple[dict[str, Any], int]:
    """Check framing and digest; return the header and where the tensors begin."""
    if len(data) < _PREFIX.size + _DIGEST_BYTES:
        raise StateError(f"{len(data)} bytes are too few for a saved state: it is truncated")
    magic, version, length = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise StateError("this is no saved state: it does not begin with the mark of one")
    if version != VERSION:
        raise StateError(f"saved state of format {version}; this release reads format {VERSION}")
    begin = _PREFIX.size + length
    if length > _MAX_HEADER or begin + _DIGEST_BYTES > len(data):
        raise StateError("the saved state ends inside its header: it is truncated or altered")
    if xxhash.xxh3_128_digest(memoryview(data)[:-_DIGEST_BYTES]) != data[-_DIGEST_BYTES:]:
        raise StateError("the saved state does not match its digest: it is truncated or altered")
    try:
        header = msgpack.unpackb(data[_PREFIX.size : begin])
        promised = begin + sum(tensor[3] for tensor in header["tensors"]) + _DIGEST_BYTES
        fields = {"model": str(header["model"]), "memory": str(header["memory"]), "tensors": header["tensors"]}
    except (ValueError, TypeError, KeyError, IndexError, RecursionError, msgpack.UnpackException) as error:
        raise StateError(f"the saved state's header cannot be read: {error}") from error
    if promised != len(data):
        raise StateError(f"the saved state promises {promised} bytes and has {len(data)}: it was altered")
    return fields, begin


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _raw(tensor: Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
