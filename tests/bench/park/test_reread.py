"""The other Python is run for real, with a stand-in for llama-cpp-python that reads as slowly as it is told."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bench.park.reread import LlamaFailedError, LlamaJob, Reread, Rereading, reread

STAND_IN = """
import time
from types import SimpleNamespace


class Llama:
    def __init__(self, path, n_ctx, n_batch, n_threads, n_threads_batch, flash_attn, verbose):
        if path == "missing.gguf":
            raise ValueError("no model at missing.gguf")
        self.pause = 1e-6 if flash_attn else 1e-5
        self.room, self.n_tokens = n_ctx, 0

    def eval(self, tokens):
        self.n_tokens += len(tokens)
        assert self.n_tokens <= self.room
        time.sleep(len(tokens) * self.pause)

    def sample(self, temp):
        return 1

    def reset(self):
        self.n_tokens = 0

    def save_state(self):
        return SimpleNamespace(llama_state_size=10 * self.n_tokens, n_tokens=self.n_tokens)

    def load_state(self, state):
        self.n_tokens = state.n_tokens

    def close(self):
        pass
"""


@pytest.fixture(autouse=True)
def _stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llama_cpp.py").write_text(STAND_IN, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


def _job(**changed: object) -> LlamaJob:
    job = {
        "model": "tiny.gguf",
        "threads": 1,
        "tokens": list(range(4096)),
        "question": [1, 2, 3],
        "lengths": [4096, 1000],
        "limit": 60.0,
        "repeats": 2,
    }
    return LlamaJob(**{**job, **changed})  # type: ignore[arg-type]


def test_every_length_is_reached_with_the_faster_attention() -> None:
    rereading = reread(Path(sys.executable), _job())
    assert rereading.flash_attention
    assert [(one.tokens, one.state_bytes) for one in rereading.reached] == [(1000, 10_000), (4096, 40_960)]
    short, long = rereading.reached
    assert 0.001 <= short.seconds < long.seconds


def test_reading_ends_at_the_limit_and_says_where() -> None:
    rereading = reread(Path(sys.executable), _job(limit=0.0005, lengths=[256, 4096]))
    assert [one.tokens for one in rereading.reached] == [256, 768]


def test_a_failure_says_what_the_other_python_said() -> None:
    with pytest.raises(LlamaFailedError, match=r"no model at missing\.gguf"):
        reread(Path(sys.executable), _job(model="missing.gguf"))


def test_a_python_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(LlamaFailedError, match="python-of-nobody"):
        reread(tmp_path / "python-of-nobody", _job())


def test_a_length_not_reached_is_compared_with_what_was_read_on_the_way() -> None:
    reached = [Reread(tokens, tokens / 100, 0.1, 1, 1.0, 1.0, 0.1) for tokens in (1000, 5000)]
    rereading = Rereading(flash_attention=True, reached=reached)
    assert rereading.towards(1000) == reached[0]
    assert rereading.towards(4999) == reached[0]
    assert rereading.towards(9000) == reached[1]
    assert rereading.towards(999) is None
