"""Something hidden in a text: it is there, once, where it should be, and its answer is what is asked for."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
import torch

from models.adapt.tasks.base import IGNORED, Batch
from models.adapt.tasks.retrieval import (
    Retrieval,
    copy_task,
    fact_task,
    filler,
    halves,
    needle_task,
    passkey_task,
    rewrite_task,
    stretches,
)
from models.errors import ConfigError
from models.probes import prose
from models.tokenizer import Tokenizer
from models.weights.checkpoint import load_checkpoint

LENGTH = 300


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return Tokenizer.of(load_checkpoint(str(tiny_model)).tokenizer)


@pytest.fixture(scope="module")
def book(tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(prose(random.Random(0), 20_000), start=False)


def draw(task: Retrieval, length: int = LENGTH, seed: int = 0) -> Batch:
    return task.batch(torch.Generator().manual_seed(seed), 6, length)


def texts(task: Retrieval, batch: Batch) -> list[tuple[str, str]]:
    """What is read, with the answer, and what is asked for at its end; both without a full stop behind them."""
    found = []
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        answer = [token for token in targets if token != IGNORED]
        asked = task.tokenizer.decode([*tokens, answer[-1]])
        said = task.tokenizer.decode(answer).removesuffix(".")
        found.append((asked.removesuffix("."), said))
    return found


def test_a_passkey_is_said_in_its_filler_and_asked_for_at_the_end(tokenizer: Tokenizer) -> None:
    task = passkey_task(tokenizer)
    batch = draw(task)
    assert batch.tokens.shape == batch.targets.shape == (6, LENGTH)
    keys = []
    for read, answer in texts(task, batch):
        key = answer.strip()
        keys.append(key)
        assert f"The pass key is {key}. Remember it. {key} is the pass key." in read
        assert read.endswith(f"What is the pass key? The pass key is {key}")
        assert "The grass is green." in read
    assert len(set(keys)) > 1


def test_a_passkey_is_said_in_a_book_instead(tokenizer: Tokenizer, book: list[int]) -> None:
    task = passkey_task(tokenizer, book=book)
    batch = draw(task)
    for tokens, (read, answer) in zip(batch.tokens, texts(task, batch), strict=True):
        key = answer.strip()
        assert f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n" in read
        assert read.endswith(f"What is the pass key? The pass key is {key}")
        assert "The grass is green." not in read
        assert tokens[:4].tolist() in (book[place : place + 4] for place in range(len(book)))


def test_every_target_is_the_next_token(tokenizer: Tokenizer) -> None:
    batch = draw(passkey_task(tokenizer))
    for tokens, targets in zip(batch.tokens, batch.targets, strict=True):
        asked = (targets != IGNORED).nonzero().flatten()
        assert asked[-1] == LENGTH - 1
        assert torch.equal(targets[asked[:-1]], tokens[asked[1:]])


def test_what_will_be_asked_for_is_marked(tokenizer: Tokenizer, book: list[int]) -> None:
    batch = draw(passkey_task(tokenizer))
    assert batch.marked is not None
    for tokens, marked, (_, answer) in zip(
        batch.tokens, batch.marked, texts(passkey_task(tokenizer), batch), strict=True
    ):
        key = answer.strip()
        said = tokenizer.decode(tokens[marked].tolist())
        assert said.strip() == f"The pass key is {key}. Remember it. {key} is the pass key."
    batch = draw(needle_task(tokenizer, book, keys=3))
    assert batch.marked is not None
    for tokens, marked in zip(batch.tokens, batch.marked, strict=True):
        said = tokenizer.decode(tokens[marked].tolist())
        assert re.fullmatch(r"( ?One of the special magic numbers for [^.]+ is: \d{7}\.){3}", said)


def test_facts_are_told_in_words_of_many_kinds_and_end_where_their_sentence_does(
    tokenizer: Tokenizer, book: list[int]
) -> None:
    task, openings, stops = fact_task(tokenizer, book), set(), set()
    for seed in range(8):
        batch = draw(task, 400, seed)
        assert batch.answers is not None
        for (read, answer), targets, answers in zip(texts(task, batch), batch.targets, batch.answers, strict=True):
            hay, question = read.rsplit("\n", 1)
            assert answer in hay
            openings.add(question.split()[0])
            stopped = tokenizer.decode(targets[-1:].tolist()) == "."
            stops.add(stopped)
            assert stopped == (f"{answer}." in hay)
            assert 1 <= answers.max() <= (targets != IGNORED).sum()
    assert len(openings) > 10
    assert stops == {True, False}


def test_the_tokens_of_an_answer_are_counted_wherever_it_is_said(tokenizer: Tokenizer) -> None:
    batch = draw(passkey_task(tokenizer))
    assert batch.answers is not None
    for tokens, answers, targets in zip(batch.tokens, batch.answers, batch.targets, strict=True):
        wanted = targets[targets != IGNORED]
        for number, token in enumerate(wanted.tolist(), start=1):
            said = tokens[answers == number].tolist()
            assert len(said) == 2  # a passkey is said twice
            assert said[0] == token
            assert said[1] == token or number == len(wanted)
        assert answers.max() == len(wanted)
    assert batch.to("cpu").answers is not None


@pytest.mark.parametrize(("depth", "low", "high"), [(0.0, 0, 0.45), (1.0, 0.55, 1)])
def test_depth_says_where(tokenizer: Tokenizer, depth: float, low: float, high: float) -> None:
    task = passkey_task(tokenizer, depth)
    for read, answer in texts(task, draw(task, 600)):
        assert low <= read.index(f"The pass key is {answer.strip()}.") / len(read) <= high


def test_one_of_several_needles_is_asked_for(tokenizer: Tokenizer, book: list[int]) -> None:
    task = needle_task(tokenizer, book, keys=3)
    for read, answer in texts(task, draw(task, 600)):
        question = read.rsplit("\n", 1)[1].removesuffix(answer)
        assert read.count("One of the special magic numbers for") == 4
        assert read.count(f"{question}{answer}.") == 1


def test_of_a_rewritten_number_the_newest_is_asked_for(tokenizer: Tokenizer, book: list[int]) -> None:
    task = rewrite_task(tokenizer, book, times=3)
    for read, answer in texts(task, draw(task, 600)):
        question = read.rsplit("\n", 1)[1].removesuffix(answer)
        said = read[: read.rindex("\n")].split(question)[1:]
        assert len(said) == 3
        assert said[-1].startswith(answer)
        assert not any(one.startswith(answer) for one in said[:-1])


def test_half_of_a_mixed_haystack_is_filler_and_half_the_book(tokenizer: Tokenizer, book: list[int]) -> None:
    both = halves(filler(tokenizer), stretches(book))
    repeated, drawn = (
        filler(tokenizer)(random.Random(0), 50),
        {tuple(both(random.Random(seed), 101)) for seed in range(9)},
    )
    assert {(list(hay[:50]) == repeated, list(hay[50:100]) == repeated) for hay in drawn} == {
        (True, False),
        (False, True),
    }
    assert all(len(hay) == 101 for hay in drawn)


def test_the_generator_alone_decides(tokenizer: Tokenizer, book: list[int]) -> None:
    task = needle_task(tokenizer, book)
    assert torch.equal(draw(task).tokens, draw(task).tokens)
    assert not torch.equal(draw(task).tokens, draw(task, seed=1).tokens)


def test_what_is_too_short_is_refused(tokenizer: Tokenizer, book: list[int]) -> None:
    with pytest.raises(ConfigError, match="at least 128 tokens"):
        draw(passkey_task(tokenizer), 127)
    with pytest.raises(ConfigError, match="give a longer one"):
        draw(needle_task(tokenizer, book[:100]))


def test_a_list_of_words_is_said_and_to_be_said_again(tokenizer: Tokenizer, book: list[int]) -> None:
    task = copy_task(tokenizer, book, words=5)
    lists = []
    for read, answer in texts(task, draw(task)):
        words = answer.strip().split(", ")
        assert len(set(words)) == 5
        assert read.count(f"The words to keep in mind are:{answer}") == 2
        lists.append(answer)
    assert len(set(lists)) == len(lists)
    with pytest.raises(ConfigError, match="give a longer one"):
        draw(copy_task(tokenizer, book[:3]))
