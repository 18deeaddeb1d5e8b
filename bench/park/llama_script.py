"""Run by a Python that has llama-cpp-python: `python llama_script.py JOB`. Reads one text and times it.

JOB is a JSON file: {"model": path of a GGUF, "threads", "tokens": [...], "question": [...], "lengths": [...], "limit": seconds of
reading, "repeats"}. Prints one JSON object a line: first {"flash_attention"}, then for each length that was reached, and for where
the limit ended the reading, {"tokens", "seconds", "first_token", "state_bytes", "save", "load", "first_token_loaded"}, all but
counts and bytes in seconds, the last three being medians of the repeats. Imports nothing of this repository.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHUNK = 512
_TRIED_TOKENS = 2_048


def _open(job: dict[str, Any], context: int, *, flash_attention: bool) -> Any:
    llama_cpp = importlib.import_module("llama_cpp")
    return llama_cpp.Llama(
        job["model"],
        n_ctx=context,
        n_batch=CHUNK,
        n_threads=job["threads"],
        n_threads_batch=job["threads"],
        flash_attn=flash_attention,
        verbose=False,
    )


def _timed(work: Any, *arguments: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - began, result


def faster_with_flash_attention(job: dict[str, Any]) -> bool:
    """Whether this build on this machine reads faster with flash attention than without."""
    seconds = {}
    for choice in (True, False):
        model = _open(job, _TRIED_TOKENS, flash_attention=choice)
        model.eval(job["tokens"][:CHUNK])
        seconds[choice], _ = _timed(model.eval, job["tokens"][CHUNK:_TRIED_TOKENS])
        model.close()
    return seconds[True] < seconds[False]


def first_token(model: Any, question: Sequence[int]) -> float:
    """Seconds to the first token behind a question; the model stands where it stood, with the question's tokens to be forgotten."""
    stands = model.n_tokens
    seconds, _ = _timed(lambda: (model.eval(question), model.sample(temp=0.0)))
    model.n_tokens = stands
    return seconds


def saved_state(model: Any, question: Sequence[int], repeats: int) -> dict[str, float]:
    """llama.cpp's own way to park: its saved state, kept in this process's memory."""
    saves, loads, firsts, size = [], [], [], 0
    for _ in range(repeats):
        save, state = _timed(model.save_state)
        model.reset()
        load, _ = _timed(model.load_state, state)
        saves.append(save)
        loads.append(load)
        firsts.append(first_token(model, question))
        size = state.llama_state_size
    return {
        "state_bytes": size,
        "save": statistics.median(saves),
        "load": statistics.median(loads),
        "first_token_loaded": statistics.median(firsts),
    }


def reread(job: dict[str, Any]) -> None:
    """Read until the longest length or the limit; print what was seen at every length."""
    flash = faster_with_flash_attention(job)
    print(json.dumps({"flash_attention": flash}), flush=True)
    marks = sorted(job["lengths"])
    model = _open(job, marks[-1] + CHUNK, flash_attention=flash)
    read, seconds = 0, 0.0
    for mark in marks:
        while read < mark and seconds < job["limit"]:
            chunk = job["tokens"][read : min(mark, read + CHUNK)]
            spent, _ = _timed(model.eval, chunk)
            read, seconds = read + len(chunk), seconds + spent
        seen = {"tokens": read, "seconds": seconds, "first_token": first_token(model, job["question"])}
        print(json.dumps(seen | saved_state(model, job["question"], job["repeats"])), flush=True)
        if read < mark:
            return


if __name__ == "__main__":
    reread(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
