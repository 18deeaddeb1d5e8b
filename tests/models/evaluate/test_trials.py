"""What is hidden, where, and how answers are judged: by readers that know the text by heart, or do not."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence

import pytest

from models.errors import ModelsError
from models.evaluate.reading import Reader
from models.evaluate.trials import TAIL, Trials
from models.load import LoadedModel
from models.probes import prose
from models.state import MemoryState

LENGTH = 1_500


class Notes(MemoryState):
    """A session that is the tokens it has read."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        super().__init__({})
        self.read_so_far = list(tokens)

    def clone(self) -> Notes:
        return Notes(self.read_so_far)


class Scholar(Reader):
    """Knows all that was read by heart: says what stands behind the newest place with the question's last words."""

    def __init__(self, model: LoadedModel, repeated: int = 1) -> None:
        super().__init__("scholar", model)
        self.texts: list[str] = []
        self.read_tokens = 0
        self._repeated = repeated

    def empty(self) -> MemoryState:
        return Notes()

    def read(self, state: MemoryState, tokens: Sequence[int]) -> MemoryState:
        assert isinstance(state, Notes)
        state.read_so_far += tokens
        self.read_tokens += len(tokens)
        return state

    def answer(self, state: MemoryState, question: Sequence[int], count: int) -> list[int]:
        assert isinstance(state, Notes)
        text = self.model.tokenizer.decode(state.read_so_far)
        self.texts.append(text)
        cue = self.model.tokenizer.decode(question).strip().split("? ")[-1]
        if found := re.search(r"The four special magic numbers for (\w+) are:", cue):
            numbers = re.findall(rf"magic numbers for {found[1]} is: (\d+)\.", text)
            answer = ", ".join(numbers[-1:] * self._repeated + numbers)
        else:
            answer = re.split(r"[ .]", text.rpartition(cue)[2].strip())[0]
        return self.model.tokenizer.encode(" " + answer, start=False)[:count]


class Ignorant(Scholar):
    """Has an answer of the right kind to everything, and always the same."""

    def answer(self, state: MemoryState, question: Sequence[int], count: int) -> list[int]:
        return self.model.tokenizer.encode(" 5550123", start=False)[:count]


class Forgetful(Scholar):
    """Knows everything for so many tokens, and then nothing."""

    def __init__(self, model: LoadedModel, room: int) -> None:
        super().__init__(model)
        self._room = room

    def answer(self, state: MemoryState, question: Sequence[int], count: int) -> list[int]:
        assert isinstance(state, Notes)
        known = super().answer(state, question, count)
        return known if len(state.read_so_far) <= self._room else []


@pytest.fixture(scope="module")
def book() -> str:
    return prose(random.Random(1), 40_000)


TASKS = {"needle": 5, "multikey": 4, "multivalue": 1, "rewrite": 4, "facts": 14}


@pytest.mark.parametrize("task", TASKS)
def test_who_knows_the_text_by_heart_answers_all_and_who_does_not_nothing(
    infini: LoadedModel, book: str, task: str
) -> None:
    trials = Trials(infini.tokenizer, book)
    for wanted in (1, 6):
        right = trials.questions(Scholar(infini), task, LENGTH, wanted)
        assert right == [1.0] * len(right)
        assert wanted <= len(right) < wanted + TASKS[task]
    guessed = trials.questions(Ignorant(infini), task, LENGTH, 6)
    assert sum(guessed) / len(guessed) < 0.4
    assert task == "needle" or not any(guessed), "only digits of needles are right by chance"


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_a_passkey_is_hidden_at_its_depth(infini: LoadedModel, depth: float) -> None:
    scholar = Scholar(infini)
    assert Trials(infini.tokenizer, "A book.").passkey(scholar, LENGTH, 2, depth) == [1.0, 1.0]
    for text in scholar.texts:
        before, _, after = text.partition("The pass key is")
        assert len(before) / len(before + after) == pytest.approx(depth, abs=0.15)


def test_passkeys_at_several_depths_are_those_of_each_depth_and_share_the_reading(infini: LoadedModel) -> None:
    trials, apart, together = Trials(infini.tokenizer, "A book."), Scholar(infini), Scholar(infini)
    for depth in (0.0, 0.5, 1.0):
        trials.passkey(apart, LENGTH, 2, depth)
    assert trials.passkeys(together, LENGTH, 2, [0.0, 0.5, 1.0]) == [[1.0, 1.0]] * 3
    assert together.texts == apart.texts
    assert together.read_tokens < apart.read_tokens - LENGTH / 3


def test_a_passkey_in_the_book_is_asked_for_after_ever_more_of_it(infini: LoadedModel, book: str) -> None:
    forgetful, trials = Forgetful(infini, 1_300), Trials(infini.tokenizer, book)
    found = trials.fading(forgetful, [1_200, 1_000, 1_500], 2)
    assert found == {1_000: [1.0, 1.0], 1_200: [1.0, 1.0], 1_500: [0.0, 0.0]}
    first, second = forgetful.texts[:3], forgetful.texts[3:]
    for shorter, longer in (*itertools.pairwise(first), *itertools.pairwise(second)):
        assert longer.startswith(shorter)
        assert len(longer) > len(shorter)
    assert first[0].count("The pass key is") == 1
    assert first[0] != second[0]


def test_a_book_that_is_shorter_than_what_is_to_be_read_of_it_is_refused(infini: LoadedModel) -> None:
    with pytest.raises(ModelsError, match="name a longer one"):
        Trials(infini.tokenizer, "A book.").fading(Scholar(infini), [1_000], 1)


def test_four_numbers_of_one_person_are_spread_over_the_text_and_none_is_in_its_tail(
    infini: LoadedModel, book: str
) -> None:
    scholar, trials = Scholar(infini), Trials(infini.tokenizer, book)
    trials.multivalue(scholar, 4_000, 2)
    assert len(set(scholar.texts)) == 2
    for text in scholar.texts:
        said = list(re.finditer(r"One of the special magic numbers for (\w+) is: (\d{7})\.", text))
        assert len({one[1] for one in said}) == 1
        assert len({one[2] for one in said}) == 4
        apart = [later.start() - one.end() for one, later in itertools.pairwise(said)]
        assert min(apart) > len(text) / 8
        assert len(infini.tokenizer.encode(text[said[-1].end() :])) > TAIL


def test_numbers_count_whole_once_and_in_any_order(infini: LoadedModel, book: str) -> None:
    trials = Trials(infini.tokenizer, book)
    assert trials.multivalue(Scholar(infini, repeated=2), LENGTH, 1) == [1.0]
    # Too often the same: what is said when the answer is over does not count.
    assert trials.multivalue(Scholar(infini, repeated=9), LENGTH, 1) == [0.25]


def test_no_question_of_an_uneven_number_is_lost(infini: LoadedModel, book: str) -> None:
    scholar = Scholar(infini)
    assert len(Trials(infini.tokenizer, book).needles(scholar, LENGTH, 7, 2)) == 7
    assert len(set(scholar.texts)) == 7


def test_the_seed_decides_what_is_hidden(infini: LoadedModel, book: str) -> None:
    texts = []
    for seed in (0, 0, 1):
        scholar = Scholar(infini)
        Trials(infini.tokenizer, book, seed).multikey(scholar, LENGTH, 1)
        texts.append(scholar.texts)
    assert texts[0] == texts[1] != texts[2]


def test_a_book_without_sentences_is_refused(infini: LoadedModel) -> None:
    with pytest.raises(ModelsError, match="no sentence of the book ends"):
        Trials(infini.tokenizer, "kelo rati " * 3_000).multikey(Scholar(infini), LENGTH, 1)
