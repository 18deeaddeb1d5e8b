"""The GGUF container: metadata and where the tensors lie.

The `gguf` package's own reader builds several numpy arrays for every string of the vocabulary, which takes
seconds for 50,000 tokens and trusts the counts it finds. This one reads the same header in a tenth of the
time and checks every length against the file's size; what the tensor bytes mean stays with the package.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    GGUF_MAGIC,
    GGMLQuantizationType,
    GGUFValueType,
)

from models.errors import CheckpointError

_SCALARS: Mapping[int, str] = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}
_MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class TensorPlace:
    """One tensor in the file: `shape` slowest axis first, `start` and `size` in bytes from the file's
    beginning.
    """

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int
    size: int


@dataclass(frozen=True)
class GgufFile:
    """An opened GGUF file. Metadata values are numbers, strings, booleans, or lists of them."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorPlace]

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Read the header. Raises `CheckpointError` when the file is no GGUF, is damaged, or ends too
        early.
        """
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(path, data)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
        except (OSError, ValueError, OverflowError) as error:
            raise CheckpointError(f"{path} cannot be read as GGUF: {error}") from error

    def bytes_of(self, name: str) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """The stored bytes of a tensor, mapped from the file; read-only."""
        place = self.tensors[name]
        return np.memmap(self.path, np.uint8, mode="r", offset=place.start, shape=(place.size,))


class _Cursor:
    """Reads forward through the header and never past its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.at = 0

    def _advance(self, size: int) -> int:
        start = self.at
        if size > len(self._data) - start:
            raise CheckpointError("the file ends in the middle of its header; fetch it again")
        self.at = start + size
        return start

    def take(self, size: int) -> bytes:
        start = self._advance(size)
        return self._data[start : start + size]

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def string(self) -> str:
        return self.take(self.u64()).decode()

    def value(self, kind: int) -> Any:
        if kind == GGUFValueType.STRING:
            return self.string()
        if kind == GGUFValueType.ARRAY:
            return self._array(self.u32(), self.u64())
        return self._scalars(kind, 1)[0]

    def _array(self, kind: int, count: int) -> list[Any]:
        if kind == GGUFValueType.STRING:
            return self._strings(count)
        if kind == GGUFValueType.ARRAY:
            raise CheckpointError("its metadata holds nested arrays, which no Llama checkpoint needs")
        return self._scalars(kind, count)

    def _scalars(self, kind: int, count: int) -> list[Any]:
        if kind not in _SCALARS:
            raise CheckpointError(f"its metadata holds a value of unknown type {kind}; the file may be damaged")
        dtype = np.dtype(_SCALARS[kind])
        values: list[Any] = np.frombuffer(self.take(dtype.itemsize * count), dtype).tolist()
        return values

    def _strings(self, count: int) -> list[str]:
        """As `string` many times, without its calls: vocabularies have up to half a million entries."""
        data, at, end = self._data, self.at, len(self._data)
        length, texts = struct.Struct("<Q"), []
        if count > (end - at) // length.size:
            self._advance(end)
        for _ in range(count):
            if end - at < length.size:
                self._advance(end)
            start = at + length.size
            at = start + length.unpack_from(data, at)[0]
            if at > end:
                self._advance(end)
            texts.append(data[start:at].decode())
        self.at = at
        return texts


def _read(path: Path, data: mmap.mmap) -> GgufFile:
    cursor = _Cursor(data)
    if cursor.u32() != GGUF_MAGIC:
        raise CheckpointError("this is no GGUF file")
    version = cursor.u32()
    if version not in (2, 3):
        raise CheckpointError(f"GGUF version {version} is not supported; convert the model to version 3, little-endian")
    tensor_count, value_count = cursor.u64(), cursor.u64()
    metadata = {}
    for _ in range(value_count):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.u32())
    heads = [_tensor_head(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise CheckpointError(f"general.alignment is {alignment!r}; the file is damaged")
    base = -(-cursor.at // alignment) * alignment
    places = {name: _place(name, shape, kind, base + offset, len(data)) for name, shape, kind, offset in heads}
    return GgufFile(path, metadata, places)


def _tensor_head(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type and offset as written; the file has the fastest axis first."""
    name, axes = cursor.string(), cursor.u32()
    if axes > _MAX_DIMENSIONS:
        raise CheckpointError(f"tensor {name} claims {axes} dimensions; the file is damaged")
    shape = tuple(cursor.u64() for _ in range(axes))[::-1]
    return name, shape, cursor.u32(), cursor.u64()


def _place(name: str, shape: tuple[int, ...], kind: int, start: int, end: int) -> TensorPlace:
    try:
        quantization = GGMLQuantizationType(kind)
    except ValueError:
        raise CheckpointError(f"tensor {name} has the unknown type {kind}") from None
    block, block_bytes = GGML_QUANT_SIZES[quantization]
    if shape[-1:] and shape[-1] % block:
        raise CheckpointError(f"tensor {name}: rows of {shape[-1]} are no whole number of {quantization.name} blocks")
    place = TensorPlace(shape, quantization, start, prod(shape) // block * block_bytes)
    if place.size < 1 or place.start + place.size > end:
        raise CheckpointError(f"the file ends before tensor {name} does; fetch it again")
    return place
