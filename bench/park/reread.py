"""Reading the same text again with llama.cpp: what a server without saved sessions would do instead of resuming."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("llama_script.py")
_SLACK_SECONDS = 600.0
"""For loading the model and for saving and restoring its states, on top of the limit of reading."""


class LlamaFailedError(RuntimeError):
    """The other Python did not do it; the text has what it said last."""


@dataclass(frozen=True)
class LlamaJob:
    """What llama.cpp is to read: at most `limit` seconds long, to each of `lengths` tokens in turn."""

    model: str
    threads: int
    tokens: Sequence[int]
    question: Sequence[int]
    lengths: Sequence[int]
    limit: float
    repeats: int


@dataclass(frozen=True)
class Reread:
    """Seconds; `tokens` is one of the lengths wanted, or where the limit ended the reading."""

    tokens: int
    seconds: float
    first_token: float
    state_bytes: int
    save: float
    load: float
    first_token_loaded: float


@dataclass(frozen=True)
class Rereading:
    """All that llama.cpp did, shortest first."""

    flash_attention: bool
    reached: Sequence[Reread]

    def towards(self, length: int) -> Reread | None:
        """The reading of `length` tokens or, if it did not come so far, of the most tokens below."""
        return max((one for one in self.reached if one.tokens <= length), key=lambda one: one.tokens, default=None)


def reread(python: Path, job: LlamaJob) -> Rereading:
    """Run the job with another Python. Raises `LlamaFailedError`."""
    with tempfile.TemporaryDirectory(prefix="palimpsest-llama-") as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(asdict(job)), encoding="utf-8")
        try:
            done = subprocess.run(
                [python, SCRIPT, path],
                capture_output=True,
                text=True,
                check=False,
                timeout=job.limit + _SLACK_SECONDS,
            )
        except OSError as error:
            raise LlamaFailedError(
                f"{python} cannot be run: {error}; name a Python that has llama-cpp-python"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise LlamaFailedError(f"{python} did not end {_SLACK_SECONDS:.0f} s after the limit") from error
    if done.returncode:
        raise LlamaFailedError(f"{python} failed; it said: {done.stderr[-600:].strip()}")
    return parse(done.stdout)


def parse(output: str) -> Rereading:
    """What the script printed."""
    head, *rest = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return Rereading(bool(head["flash_attention"]), [Reread(**one) for one in rest])
