"""The compiled functions, if this installation has them and this processor can run them."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec

import torch  # noqa: F401 - first: the library then shares torch's OpenMP and its threads


@cache
def compiled() -> ctypes.CDLL | None:
    """The library, or None where it was not built (there was no C++ compiler), does not load (there is no OpenMP), or the processor
    lacks AVX-512 BF16."""
    found = find_spec("models.native._kernels")
    if found is None or found.origin is None:
        return None
    try:
        loaded = ctypes.CDLL(found.origin)
    except OSError:  # torch's kernels do the same, more slowly; the server's log says which are used
        return None
    return loaded if loaded.palimpsest_supported() else None


def library() -> ctypes.CDLL:
    """The same, where it is known to be there."""
    loaded = compiled()
    assert loaded is not None, "only for what it suits"
    return loaded
