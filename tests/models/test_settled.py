from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from models.settled import LONGEST_RUN, Cutter

PIECES = st.sampled_from(
    ["a", "bc", " ", "  ", "\n", "\n\n", "\t", "é", "漢", "🙂", "1", ".", "\u3000", "\x1c"],
)
TEXTS = st.lists(PIECES, max_size=60).map("".join)


def _settle(text: str, sizes: list[int]) -> list[int]:
    """Where a text that arrives in pieces of these sizes is cut."""
    cutter, places, done, opened = Cutter(), [], 0, ""
    while done + len(opened) < len(text):
        size = sizes.pop(0) if sizes else len(text)
        at = done + len(opened)
        settled, rest = cutter.split(opened + text[at : at + size])
        places += [done + cut.at for cut in cutter.cuts(settled + rest) if cut.at <= len(settled)]
        done, opened = done + len(settled), rest
    return places


def test_boundaries() -> None:
    def split(text: str) -> tuple[str, str]:
        return Cutter().split(text)

    assert split("one two") == ("one", " two")
    assert split("one ") == ("", "one ")
    assert split("one  two") == ("", "one  two")
    assert split("one\ntwo") == ("one\n", "two")
    assert split("one\n") == ("", "one\n")
    assert split("one\n\ntwo") == ("", "one\n\ntwo")
    assert split("\ntwo") == ("", "\ntwo")
    assert split("") == ("", "")


@given(TEXTS, st.lists(st.integers(1, 9)))
def test_cuts_do_not_depend_on_how_text_arrives(text: str, sizes: list[int]) -> None:
    assert _settle(text, sizes) == [cut.at for cut in Cutter().cuts(text)]


@given(st.integers(4080, 4110), TEXTS, st.integers(0, 8200), st.lists(st.integers(1, 3000), max_size=9))
def test_forced_cuts_do_not_depend_on_how_text_arrives(run: int, middle: str, more: int, sizes: list[int]) -> None:
    text = "".join(("x" * run, middle, "\n" * (more % 7), "y" * more, middle))
    assert _settle(text, sizes) == [cut.at for cut in Cutter().cuts(text)]


def test_a_line_end_right_behind_a_forced_cut() -> None:
    """Its left neighbour is gone when the text arrives in pieces, so it must not count in the whole either."""
    text = "x" * LONGEST_RUN + "\ny z"
    places = [LONGEST_RUN, LONGEST_RUN + 2]
    assert _settle(text, [LONGEST_RUN + 1]) == _settle(text, []) == places


def test_long_runs_are_cut_by_force_and_nothing_is_lost() -> None:
    text = "word " + "x" * (3 * LONGEST_RUN)
    cuts = [(cut.at, cut.forced) for cut in Cutter().cuts(text)]
    assert cuts == [(4, False), (4100, True), (8196, True), (12292, True)]
    assert "".join(Cutter().forced_pieces(text)) == text
    assert len(list(Cutter().forced_pieces(text))) == 4
    assert list(Cutter().forced_pieces("a b" * 5000)) == ["a b" * 5000]


def test_open_text_is_bounded() -> None:
    opened = ""
    for _ in range(50):
        _, opened = Cutter().split(opened + "z" * 1000)
        assert len(opened) <= LONGEST_RUN


def test_kinds_of_boundaries_can_be_switched_off() -> None:
    assert Cutter(spaces=False).split("a b\nc") == ("a b\n", "c")
    assert Cutter(line_ends=False).split("a b\nc") == ("a", " b\nc")
    assert Cutter(spaces=False, line_ends=False).split("a b\nc") == ("", "a b\nc")
