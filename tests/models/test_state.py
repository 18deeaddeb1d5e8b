"""Rows of a slab: what is selected is shared, what is not stays as it was."""

from __future__ import annotations

import pytest
import torch

from models.state import MemoryState, TensorSpec, spec_nbytes

SPEC = {
    "position": TensorSpec((), torch.int64),
    "keys": TensorSpec((2, 3, 5, 4), torch.float32),
    "places": TensorSpec((6,), torch.int32),
    "score": TensorSpec((3,), torch.float32, fill=-torch.inf),
}


def slab(batch: int = 5) -> MemoryState:
    """Every row is filled with its own number."""
    state = MemoryState.empty(SPEC, batch)
    for row in range(batch):
        for name in SPEC:
            state.select([row]).write(name, torch.tensor(row))
    return state


def test_an_empty_state_holds_what_the_spec_says() -> None:
    state = MemoryState.empty(SPEC, 2)
    assert {name: (tuple(t.shape[1:]), t.dtype) for name, t in state.tensors().items()} == {
        name: (spec.shape, spec.dtype) for name, spec in SPEC.items()
    }
    assert (state.read("score") == -torch.inf).all()
    assert state.positions == [0, 0]


def test_bytes_are_those_of_one_session_whatever_the_batch() -> None:
    assert spec_nbytes(SPEC) == 8 + 2 * 3 * 5 * 4 * 4 + 6 * 4 + 3 * 4
    assert MemoryState.empty(SPEC, 1).nbytes == MemoryState.empty(SPEC, 7).nbytes == spec_nbytes(SPEC)


@pytest.mark.parametrize("rows", [[2], [1, 2, 3], [4, 0, 2], [3, 2]])
def test_writing_to_selected_rows_reaches_the_slab_and_no_other_row(rows: list[int]) -> None:
    state = slab()
    chosen = state.select(rows)
    assert chosen.batch == len(rows)
    assert chosen.positions == rows
    places = torch.tensor([[1, 3]]).expand(len(rows), 2)
    value = torch.arange(len(rows) * 3 * 2 * 4).view(len(rows), 3, 2, 4) + 100.0
    chosen.write_at("keys", 1, places, value)
    chosen.write_places("places", places, torch.tensor([[77, 78]], dtype=torch.int32).expand(len(rows), 2))
    chosen.write("score", torch.full((len(rows), 2), 9.0), slice(1, 3))
    for index, row in enumerate(rows):
        assert torch.equal(state.read("keys")[row, 1, :, [1, 3]], value[index])
        assert state.read("keys")[row, 0].unique().tolist() == [row]
        assert state.read("places")[row].tolist() == [row, 77, row, 78, row, row]
        assert state.read("score")[row].tolist() == [row, 9, 9]
    assert torch.equal(chosen.read_at("keys", 1, places), value)
    assert chosen.read_places("places", places).tolist() == [[77, 78]] * len(rows)
    for row in set(range(5)) - set(rows):
        assert all(bool((tensor[row] == row).all()) for tensor in state.tensors().values())


def test_places_may_differ_by_row() -> None:
    state = slab(2)
    state.write_places("places", torch.tensor([[0], [5]]), torch.tensor([[50], [60]], dtype=torch.int32))
    assert state.read("places").tolist() == [[50, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 60]]
    assert state.read_places("places", torch.tensor([[0, 1], [5, 0]])).tolist() == [[50, 0], [60, 1]]


@pytest.mark.parametrize(("outer", "inner"), [([4, 1, 3], [2, 0]), ([1, 2, 3], [0, 2]), ([4, 1, 3], [1, 2])])
def test_a_selection_of_a_selection_names_the_rows_of_the_first(outer: list[int], inner: list[int]) -> None:
    state = slab()
    chosen = state.select(outer).select(inner)
    expected = [outer[index] for index in inner]
    assert chosen.positions == expected
    chosen.write("position", torch.tensor([70, 80]))
    assert [state.positions[row] for row in expected] == [70, 80]
    assert sum(position >= 70 for position in state.positions) == 2


@pytest.mark.parametrize("rows", [[1, 2], [3, 0]])
def test_clone_copy_and_reset_touch_their_rows_only(rows: list[int]) -> None:
    state = slab()
    saved = state.select(rows).clone()
    state.select(rows).reset(SPEC)
    assert state.select(rows).positions == [0, 0]
    assert (state.select(rows).read("score") == -torch.inf).all()
    assert saved.positions == rows
    rest = [row for row in range(5) if row not in rows]
    assert state.select(rest).positions == rest
    state.select(rows).copy_from(saved)
    assert state.positions == [0, 1, 2, 3, 4]
    assert all(bool((tensor[rows[0]] == rows[0]).all()) for tensor in state.tensors().values())
