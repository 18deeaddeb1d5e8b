"""A model of transformers whose cache a press of kvpress shrinks, asked as the readers of the other benchmarks are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedTokenizerFast

from models.evaluate.reading import Reader
from models.load import LoadedModel
from models.state import MemoryState
from models.weights.checkpoint import Checkpoint

Press = Callable[[int, float], Any]
"""A press for a text of so many tokens, of which each head may keep so many."""


class PressReader(Reader):
    """Reads a text whole, lets a press keep of it what fits into `nbytes`, and only then hears the question.

    A state is the text alone; it is read and pressed when the first question comes.
    """

    def __init__(self, name: str, model: LoadedModel, theirs: Any, press: Press, nbytes: int) -> None:
        super().__init__(name, model)
        self._theirs, self._press, self._nbytes = theirs, press, nbytes
        self._pressed: tuple[list[int], Any] = ([], None)

    @property
    def state_bytes(self) -> int:
        """What the cache may weigh."""
        return self._nbytes

    def empty(self) -> MemoryState:
        """No text."""
        return MemoryState({"tokens": torch.empty(1, 0, dtype=torch.int64)})

    def read(self, state: MemoryState, tokens: Sequence[int]) -> MemoryState:
        """Append to the text."""
        return MemoryState({"tokens": torch.cat((state.read("tokens"), torch.tensor([tokens])), dim=1)})

    @torch.inference_mode()
    def answer(self, state: MemoryState, question: Sequence[int], count: int) -> list[int]:
        """Greedy continuation behind a question."""
        text = state.read("tokens")
        cache = copy.deepcopy(self._cache(text))
        answer: list[int] = []
        asked, position = torch.tensor([list(question)]), text.shape[1]
        while len(answer) < count:
            places = torch.arange(position, position + asked.shape[1])[None]
            out = self._theirs(asked, past_key_values=cache, position_ids=places, logits_to_keep=1)
            answer.append(int(out.logits[0, -1].argmax()))
            position += asked.shape[1]
            asked = torch.tensor([answer[-1:]])
        return answer

    def _cache(self, text: torch.Tensor) -> Any:
        tokens = text[0].tolist()
        if self._pressed[0] != tokens:
            config, cache = self.model.decoder.config, DynamicCache()
            entry = 2 * config.num_layers * config.num_kv_heads * config.head_dim * self.model.decoder.dtype.itemsize
            with self._press(len(tokens), self._nbytes / entry)(self._theirs):
                self._theirs.model(input_ids=text, past_key_values=cache)
            self._pressed = tokens, cache
        return self._pressed[1]


def give_tokenizer(theirs: Any, checkpoint: Checkpoint, folder: Path) -> None:
    """Put the tokenizer where presses look for it that need one: in the folder that the model's name says."""
    file = folder / "tokenizer.json"
    file.write_text(checkpoint.tokenizer.tokenizer_json, encoding="utf-8")
    tokenizer: Any = PreTrainedTokenizerFast
    tokenizer(tokenizer_file=str(file)).save_pretrained(folder)
    theirs.config.name_or_path = str(folder)
