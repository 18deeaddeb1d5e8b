"""What an evaluation reads of a memory is what a server answers."""

from __future__ import annotations

import random

import pytest
from palimpsest import Client

from models.evaluate.reading import Reader
from models.load import LoadedModel
from models.probes import numbers
from tests.integration.texts import plain_text


@pytest.mark.parametrize("seed", [1, 2])
def test_a_reader_gives_the_tokens_that_are_served(client: Client, tiny: LoadedModel, seed: int) -> None:
    said, asked = numbers(random.Random(seed))
    text = " ".join([*(one.sentence for one in said), plain_text(seed, 150).strip()]) + "."
    question = "\n" + asked.question
    session = client.sessions.create()
    session.append(text)
    served = session.generate(question, max_tokens=30, temperature=0, logprobs=0)
    reader, tokenizer = Reader("slots", tiny), tiny.tokenizer
    state = reader.read(reader.empty(), tokenizer.encode(text))
    assert state.positions[0] > 3 * tiny.decoder.memory.config.ring, "most of it is in the memory alone"
    cue = tokenizer.encode(question, start=False)
    assert served.position == state.positions[0] + len(cue) + served.usage.completion_tokens
    assert served.usage.completion_tokens > 5
    ids = [token.token_id for token in served.logprobs or () if token.token_id not in tokenizer.eos_ids]
    assert reader.answer(state, cue, 30) == ids
