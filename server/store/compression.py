"""Compression of stored content where it pays: the unused part of a young session's memory is zeros, a full memory is not.

docs/encryption.md has the measurements behind the numbers here.
"""

from __future__ import annotations

import zstandard

LEAST_BYTES = 64 << 10
"""Shorter content stays as it is."""
LARGEST_RATIO = 0.75
"""Compressed content must be smaller than this share: a full memory (0.8) costs more time than its bytes."""

_LEVEL = 1
_SAMPLES = 32
_SAMPLE_BYTES = 16 << 10


def compressed(content: bytes) -> bytes | None:
    """One zstd frame that declares its content's size, or None where that does not pay."""
    if len(content) < LEAST_BYTES or not _promising(content):
        return None
    frame = _compressor().compress(content)
    return frame if len(frame) < LARGEST_RATIO * len(content) else None


def decompressed(frame: bytes | memoryview, size: int) -> bytes:
    """The `size` bytes that went into `frame`. Raises `ValueError` for anything else, before more than `size` are allocated."""
    try:
        declared = zstandard.frame_content_size(frame)
        if declared != size:
            raise ValueError(f"it declares {declared} bytes where {size} belong")
        content = zstandard.ZstdDecompressor().decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    if len(content) != size:
        raise ValueError(f"it holds {len(content)} bytes where {size} belong")
    return content


def _promising(content: bytes) -> bool:
    """Whether blocks spread over the content shrink enough."""
    taken = _SAMPLES * _SAMPLE_BYTES
    if len(content) <= 2 * taken:
        return True
    stride = (len(content) - _SAMPLE_BYTES) // (_SAMPLES - 1)
    starts = range(0, _SAMPLES * stride, stride)
    sample = b"".join(content[start : start + _SAMPLE_BYTES] for start in starts)
    return len(_compressor().compress(sample)) < LARGEST_RATIO * taken


def _compressor() -> zstandard.ZstdCompressor:
    # One a call: its object must not be used by two threads at once, and costs microseconds.
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False)
