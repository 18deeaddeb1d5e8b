"""A session's memory as a value: named tensors whose shapes follow from a spec and never grow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorSpec:
    """Shape (without the batch dimension), dtype and initial value of one tensor of a session's state."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    fill: float = 0

    @property
    def nbytes(self) -> int:
        """Bytes of one session's tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


Spec = Mapping[str, TensorSpec]
Index = int | slice | Tensor


def spec_nbytes(spec: Spec) -> int:
    """Bytes of one session's whole state."""
    return sum(tensor.nbytes for tensor in spec.values())


class MemoryState:
    """The states of B sessions: every tensor is (B, *shape of the spec).

    A state may be a view of chosen rows of a larger one (`select`), so that the engine's slab is computed on in place.
    `Decoder.forward` consumes the state it is given and returns it: clone first to keep the old value.
    """

    in_place = True
    """Whether a write changes tensors that are there."""

    def __init__(self, tensors: Mapping[str, Tensor], rows: Tensor | None = None) -> None:
        self._tensors = dict(tensors)
        self._rows = rows

    @classmethod
    def empty(cls, spec: Spec, batch: int, device: torch.device | str = "cpu") -> MemoryState:
        """B sessions that have read nothing."""
        return cls(
            {
                name: torch.full((batch, *tensor.shape), tensor.fill, dtype=tensor.dtype, device=device)
                for name, tensor in spec.items()
            }
        )

    @property
    def batch(self) -> int:
        """B."""
        if self._rows is not None:
            return len(self._rows)
        return len(next(iter(self._tensors.values())))

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return next(iter(self._tensors.values())).device

    def select(self, rows: Sequence[int]) -> MemoryState:
        """The given rows, sharing storage with this state. Neighbouring rows cost nothing to read; others are gathered."""
        first, count = rows[0], len(rows)
        if self._rows is None and list(rows) == list(range(first, first + count)):
            return MemoryState({name: tensor.narrow(0, first, count) for name, tensor in self._tensors.items()})
        index = torch.tensor(list(rows), device=self.device)
        return MemoryState(self._tensors, index if self._rows is None else self._rows[index])

    def at(self, rows: Tensor) -> MemoryState:
        """The rows (B,) that a tensor on the device will name whenever they are read or written."""
        assert self._rows is None
        return MemoryState(self._tensors, rows)

    def read(self, name: str, *index: Index) -> Tensor:
        """`tensor[:, *index]` of the selected rows; a view where the rows are neighbours, else a copy."""
        rows: Index = slice(None) if self._rows is None else self._rows
        return self._tensors[name][(rows, *index)]

    def write(self, name: str, value: Tensor, *index: Index) -> None:
        """`tensor[:, *index] = value` for the selected rows."""
        rows: Index = slice(None) if self._rows is None else self._rows
        self._tensors[name][(rows, *index)] = value

    def located(self, name: str) -> tuple[Tensor, Tensor | None]:
        """A tensor of all sessions, and which of them are the selected rows, (B,); None: the first B."""
        return self._tensors[name], self._rows

    def read_at(self, name: str, layer: int, places: Tensor) -> Tensor:
        """Entries of a (B, L, K, N, ...) tensor at N-places that differ by row: places (B, n) -> (B, K, n, ...)."""
        return self._tensors[name][self._column, layer, :, places].transpose(1, 2)

    def write_at(self, name: str, layer: int, places: Tensor, value: Tensor) -> None:
        """The reverse of `read_at`: value (B, K, n, ...)."""
        self._tensors[name][self._column, layer, :, places] = value.transpose(1, 2)

    def read_places(self, name: str, places: Tensor) -> Tensor:
        """Entries of a (B, N) tensor: places (B, n) -> (B, n)."""
        return self._tensors[name][self._column, places]

    def write_places(self, name: str, places: Tensor, value: Tensor) -> None:
        """The reverse of `read_places`."""
        self._tensors[name][self._column, places] = value

    @cached_property
    def _column(self) -> Tensor:
        rows = torch.arange(self.batch, device=self.device) if self._rows is None else self._rows
        return rows[:, None]

    def clone(self) -> MemoryState:
        """An independent copy of the selected rows."""
        return MemoryState({name: self.read(name).clone() for name in self._tensors})

    def repeat(self, batch: int) -> MemoryState:
        """B sessions that have read what the only one here has."""
        return MemoryState(
            {name: tensor.repeat(batch, *(1,) * (tensor.dim() - 1)) for name, tensor in self.tensors().items()}
        )

    def copy_from(self, other: MemoryState) -> None:
        """Overwrite the selected rows with the rows of `other`, which has the same spec and batch."""
        for name in self._tensors:
            self.write(name, other.read(name))

    def reset(self, spec: Spec) -> None:
        """Make the selected rows sessions that have read nothing."""
        for name, tensor in spec.items():
            rows: Index = slice(None) if self._rows is None else self._rows
            self._tensors[name][rows] = tensor.fill

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the selected rows, (B, *shape)."""
        return {name: self.read(name) for name in self._tensors}

    @property
    def nbytes(self) -> int:
        """Bytes of one session."""
        return sum(math.prod(t.shape[1:]) * t.dtype.itemsize for t in self._tensors.values())

    @property
    def positions(self) -> list[int]:
        """Tokens each session has taken in."""
        positions: list[int] = self.read("position").tolist()
        return positions
