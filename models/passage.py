"""States on their way between a device and the host, so that a decoder need not wait for them.

On a CPU a copy is all there is to it. On CUDA host memory is pinned, and a stream of its own carries it, beside the computation.
Never run on a GPU by us: `bench/cuda.py` is what would measure it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.state import MemoryState


@dataclass(frozen=True)
class Lifted:
    """States on their way to the host."""

    _host: MemoryState
    _arrived: torch.cuda.Event | None

    def wait(self) -> MemoryState:
        """They have arrived. On any thread."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host


class Passage:
    """Between one device and the host. `lift` and `lay` belong on the thread that computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def lift(self, state: MemoryState) -> Lifted:
        """A copy, which later steps do not change."""
        copied = state.clone()
        if self._stream is None:
            return Lifted(copied, None)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            host = {}
            for name, tensor in copied.tensors().items():
                host[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                host[name].copy_(tensor, non_blocking=True)
                tensor.record_stream(self._stream)  # its memory must not be given away before
            arrived = torch.cuda.Event()
            arrived.record(self._stream)
        return Lifted(MemoryState(host), arrived)

    def lay(self, state: MemoryState, target: MemoryState) -> None:
        """Overwrite `target` on the device with a state of the same spec on the host."""
        if self._stream is None:
            target.copy_from(state)
            return
        with torch.cuda.stream(self._stream):
            sent = {
                name: tensor.pin_memory().to(self._device, non_blocking=True)
                for name, tensor in state.tensors().items()
            }
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for tensor in sent.values():
            tensor.record_stream(current)
        target.copy_from(MemoryState(sent))
