"""Which of what is served a new session is of, and whether a session's pair is served at all."""

from __future__ import annotations

from server.errors import ModelNotServed
from server.messages import Offered, Ready
from server.pairs import Pair
from server.store.base import SessionRecord


def chosen(ready: Ready, model: str | None, memory: str | None) -> Offered:
    """The pair for a session that asks for these.

    Without `model` the default one; without `memory` the default one too, or, of a model that is not offered with it, the first.
    Raises `ModelNotServed`, which lists what there is.
    """
    default = ready.offers[0]
    of_model = [offer for offer in ready.offers if offer.model == (default.model if model is None else model)]
    if not of_model:
        raise ModelNotServed(f"this server does not serve that model; it serves {listed(ready)}", param="model")
    wanted = default.memory if memory is None else memory
    found = next((offer for offer in of_model if offer.memory == wanted), None)
    if found is None and memory is None:
        return of_model[0]
    if found is None:
        of_which = "" if model is None else " of that model"
        raise ModelNotServed(
            f"this server does not serve that memory{of_which}; it serves {listed(ready)}", param="memory"
        )
    return found


def offer_of(ready: Ready, record: SessionRecord) -> Offered:
    """The pair a session is of. Raises `ModelNotServed`: it was made by another server, or under other settings."""
    found = find(ready, Pair(record.model, record.memory))
    if found is None:
        raise not_served(record, listed(ready))
    return found


def find(ready: Ready, pair: Pair) -> Offered | None:
    """What is known of a pair, if it is served."""
    return next((offer for offer in ready.offers if offer.pair == pair), None)


def not_served(record: SessionRecord, served: str) -> ModelNotServed:
    """The refusal to work with a session; `served` lists what there is."""
    return ModelNotServed(
        f"the session is of {Pair(record.model, record.memory)}, which this server does not serve; it serves {served}. Nothing of "
        "the session is lost: ask a server that offers it"
    )


def listed(ready: Ready) -> str:
    """All that is served, for a message."""
    return ", ".join(str(offer.pair) for offer in ready.offers)
