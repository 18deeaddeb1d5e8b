from __future__ import annotations

import pytest

from server.catalog import chosen, find, offer_of
from server.errors import ModelNotServed
from server.pairs import Pair
from server.store.base import SessionRecord
from tests.server.scripted import MANY, OFFERED, OTHERS


@pytest.mark.parametrize(
    ("model", "memory", "expected"),
    [
        (None, None, OFFERED.pair),
        (None, "slots", OFFERED.pair),
        (None, "window", OTHERS[0].pair),
        ("tiny/scripted", None, OFFERED.pair),
        ("tiny/scripted", "window", OTHERS[0].pair),
        ("other/scripted", None, OTHERS[1].pair),
        ("other/scripted", "window", OTHERS[2].pair),
    ],
)
def test_what_is_left_out_is_the_default(model: str | None, memory: str | None, expected: Pair) -> None:
    assert chosen(MANY, model, memory).pair == expected


@pytest.mark.parametrize(
    ("model", "memory", "param"),
    [
        ("unheard/of", None, "model"),
        ("unheard/of", "slots", "model"),
        ("", None, "model"),
        (None, "infini", "memory"),  # of the other model only
        (None, "", "memory"),
        ("other/scripted", "slots", "memory"),
    ],
)
def test_other_pairs_are_refused_with_a_list_of_those_there_are(
    model: str | None, memory: str | None, param: str
) -> None:
    with pytest.raises(ModelNotServed) as refused:
        chosen(MANY, model, memory)
    assert refused.value.param == param
    for offer in MANY.offers:
        assert f"{offer.memory} of {offer.model}" in refused.value.message


def record(model: str, memory: str) -> SessionRecord:
    return SessionRecord(id="s", tenant="t", model=model, memory=memory, created_at=0.0, updated_at=0.0)


def test_a_session_belongs_to_model_and_memory_together() -> None:
    assert offer_of(MANY, record("other/scripted", "window")) == OTHERS[2]
    assert find(MANY, Pair("other/scripted", "slots")) is None
    with pytest.raises(ModelNotServed, match="slots of other/scripted"):
        offer_of(MANY, record("other/scripted", "slots"))
