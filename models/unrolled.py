"""A state that gradients flow through: nothing is overwritten, so that training can go back in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from models.state import Index, MemoryState, Spec


class UnrolledState(MemoryState):
    """B sessions in lockstep, for backpropagation through time.

    Tensors of more than one dimension are kept apart by their first one (layers, mostly); a write makes a new tensor of the part
    it changes. All rows must stand at the same position: folds then take all of them or none.
    """

    in_place = False

    def __init__(self, parts: Mapping[str, list[Tensor]], whole: Mapping[str, Tensor]) -> None:
        super().__init__(whole)
        self._parts = {name: list(tensors) for name, tensors in parts.items()}

    @classmethod
    def start(cls, spec: Spec, batch: int, device: torch.device | str = "cpu") -> UnrolledState:
        """B sessions that have read nothing."""
        return cls._split(MemoryState.empty(spec, batch, device).tensors())

    @classmethod
    def repeated(cls, state: MemoryState, batch: int) -> UnrolledState:
        """B sessions that have read what the only one of `state` has; nothing is copied before it changes."""
        whole = {name: tensor.expand(batch, *tensor.shape[1:]) for name, tensor in state.tensors().items()}
        return cls._split(whole)

    @classmethod
    def _split(cls, tensors: Mapping[str, Tensor]) -> UnrolledState:
        parts = {name: list(tensor.unbind(1)) for name, tensor in tensors.items() if tensor.dim() > 2}
        return cls(parts, {name: tensor for name, tensor in tensors.items() if name not in parts})

    def detached(self) -> UnrolledState:
        """The same sessions, cut off from all that was computed so far (truncated backpropagation)."""
        parts = {name: [part.detach() for part in tensors] for name, tensors in self._parts.items()}
        return UnrolledState(parts, {name: tensor.detach() for name, tensor in self._tensors.items()})

    def values(self) -> MemoryState:
        """An ordinary state with these values."""
        return MemoryState({name: tensor.detach().clone() for name, tensor in self.tensors().items()})

    @property
    def batch(self) -> int:
        """B."""
        return len(self._tensors["position"])

    def select(self, rows: Sequence[int]) -> MemoryState:
        """All rows: `rows` must name them all, in order."""
        assert list(rows) == list(range(self.batch)), "rows of an unrolled state advance together"
        return self

    def read(self, name: str, *index: Index) -> Tensor:
        """`tensor[:, *index]`."""
        if name not in self._parts:
            return self._tensors[name][(slice(None), *index)]
        if not index:
            return torch.stack(self._parts[name], dim=1)
        first, rest = index[0], (slice(None), *index[1:])
        if isinstance(first, int):
            return self._parts[name][first][rest]
        assert isinstance(first, slice), "the first dimension is read by number or slice"
        return torch.stack([part[rest] for part in self._parts[name][first]], dim=1)

    def write(self, name: str, value: Tensor, *index: Index) -> None:
        """`tensor[:, *index] = value`, into a new tensor."""
        if name not in self._parts:
            self._tensors[name] = _with(self._tensors[name], value, index)
            return
        parts = self._parts[name]
        first = index[0] if index else slice(None)
        if isinstance(first, int):
            parts[first] = _with(parts[first], value, index[1:])
            return
        assert isinstance(first, slice), "the first dimension is written by number or slice"
        for place, number in enumerate(range(len(parts))[first]):
            parts[number] = _with(parts[number], value[:, place], index[1:])

    def read_at(self, name: str, layer: int, places: Tensor) -> Tensor:
        """See `MemoryState.read_at`."""
        return self._parts[name][layer][self._column, :, places].transpose(1, 2)

    def write_at(self, name: str, layer: int, places: Tensor, value: Tensor) -> None:
        """See `MemoryState.write_at`."""
        part = self._parts[name][layer].clone()
        part[self._column, :, places] = value.transpose(1, 2).to(part.dtype)
        self._parts[name][layer] = part

    def write_places(self, name: str, places: Tensor, value: Tensor) -> None:
        """See `MemoryState.write_places`. All rows stand at the same places."""
        if name in self._parts:
            for column, place in enumerate(places[0].tolist()):
                self._parts[name][place] = value[:, column].to(self._parts[name][place].dtype)
            return
        whole = self._tensors[name].clone()
        whole[self._column, places] = value
        self._tensors[name] = whole

    def read_places(self, name: str, places: Tensor) -> Tensor:
        """See `MemoryState.read_places`. All rows stand at the same places."""
        if name in self._parts:
            return torch.stack([self._parts[name][place] for place in places[0].tolist()], dim=1)
        return super().read_places(name, places)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor, (B, *shape)."""
        return self._tensors | {name: torch.stack(parts, dim=1) for name, parts in self._parts.items()}

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self._tensors["position"].device


def _with(tensor: Tensor, value: Tensor, index: Sequence[Index]) -> Tensor:
    """A copy of the tensor in which `[:, *index]` is the value."""
    if not index:
        return value.to(tensor.dtype).expand_as(tensor)
    changed = tensor.clone()
    changed[(slice(None), *index)] = value.to(tensor.dtype)
    return changed
