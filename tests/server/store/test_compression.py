from __future__ import annotations

import os

import pytest

from server.store.compression import LARGEST_RATIO, LEAST_BYTES, compressed, decompressed


@pytest.mark.parametrize("size", [LEAST_BYTES, 1 << 20, (1 << 20) + 1, 5_000_001])
def test_zeros_pay_and_noise_does_not(size: int) -> None:
    frame = compressed(bytes(size))
    assert frame is not None
    assert len(frame) < size / 100
    assert decompressed(frame, size) == bytes(size)
    assert compressed(os.urandom(size)) is None


def test_short_content_stays_as_it_is() -> None:
    assert compressed(bytes(LEAST_BYTES - 1)) is None


@pytest.mark.parametrize(("zeros", "pays"), [(0.10, False), (0.20, False), (0.30, True), (0.90, True)])
@pytest.mark.parametrize("at_the_end", [True, False])
def test_what_decides_is_how_much_there_is_to_save(zeros: float, pays: bool, at_the_end: bool) -> None:
    size = 6 << 20
    empty = bytes(int(size * zeros))
    noise = os.urandom(size - len(empty))
    content = noise + empty if at_the_end else empty + noise
    assert (compressed(content) is not None) == pays


def test_samples_that_promise_too_much_do_not_decide_alone() -> None:
    """Content made so that every sample falls on zeros, between which there is noise."""
    size, samples, block = 16 << 20, 32, 16 << 10
    stride = (size - block) // (samples - 1)
    content = bytearray(os.urandom(size))
    for start in range(0, samples * stride, stride):
        content[start : start + block] = bytes(block)
    assert 1 - samples * block / size > LARGEST_RATIO
    assert compressed(bytes(content)) is None


def test_a_wrong_size_is_refused() -> None:
    frame = compressed(bytes(100_000))
    assert frame is not None
    for size in (0, 99_999, 100_001):
        with pytest.raises(ValueError, match="declares 100000 bytes"):
            decompressed(frame, size)
