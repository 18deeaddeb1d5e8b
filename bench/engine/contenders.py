"""Engines that do the same work: take tokens in, and continue greedily, one session or several at once."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from models.load import Offer, load_offers
from models.quantized import Precision
from models.state import MemoryState
from models.weights.checkpoint import load_checkpoint

ROOM = 96
"""Tokens that a session may grow by behind its history."""
_CHUNK = 384


class Contender(Protocol):
    """One engine. `read` begins a session; the others go on from it."""

    name: str

    def read(self, tokens: Sequence[int]) -> float:
        """Take a new session's tokens in, up to the scores behind the last one. Seconds."""

    def ask(self, tokens: Sequence[int]) -> float:
        """Take a few more tokens in, up to the scores behind the last one, and forget them again. Seconds."""

    def decode(self, steps: int) -> float:
        """Continue greedily. Seconds a token."""

    def decode_together(self, sessions: int, steps: int) -> float:
        """Continue so many copies of the session at once. Seconds a step of all of them."""

    def state_bytes(self) -> int:
        """What is kept of the session."""


class Ours:
    """The decoder as the server uses it, with the default memory."""

    def __init__(self, model: str, dtype: str, threads: int) -> None:
        self.name = f"palimpsest {dtype}"
        self._threads = threads
        self._dtype = dtype
        weights = torch.float32 if dtype == "float32" else torch.bfloat16
        precisions: tuple[Precision, ...] = ("int8", "int4")
        quantize = next((name for name in precisions if name == dtype), None)
        [self._loaded] = load_offers([Offer(model, "slots")], dtype=weights, quantize=quantize).values()
        self._decoder = self._loaded.decoder
        self._state = self._decoder.empty_state()

    def encode(self, text: str) -> list[int]:
        """The model's tokens of a text."""
        return self._loaded.tokenizer.encode(text)

    @property
    def weight_bytes(self) -> int:
        """What has to be read of the weights for one token."""
        config = self._decoder.config
        layer = config.hidden_size * (config.num_heads + config.num_kv_heads) * 2 * config.head_dim
        layer += 3 * config.hidden_size * config.intermediate_size
        matrices, head = config.num_layers * layer, config.vocab_size * config.hidden_size
        if self._dtype == "int4":
            # A scale and a lowest value, two bytes each, for every 32; the head has eight bits.
            return matrices * 5 // 8 + head
        return {"float32": 4, "bfloat16": 2, "int8": 1}[self._dtype] * (matrices + head)

    @torch.inference_mode()
    def read(self, tokens: Sequence[int]) -> float:
        torch.set_num_threads(self._threads)
        self._state = self._decoder.empty_state()
        began = time.perf_counter()
        given = torch.tensor([list(tokens)])
        for begin in range(0, len(tokens), _CHUNK):
            chunk = given[:, begin : begin + _CHUNK]
            self._decoder.read_through(chunk, self._state, ahead=len(tokens) - begin - chunk.shape[1])
        self._decoder.read_out(self._state.read("hidden"))
        return time.perf_counter() - began

    @torch.inference_mode()
    def ask(self, tokens: Sequence[int]) -> float:
        torch.set_num_threads(self._threads)
        state = self._state.clone()
        began = time.perf_counter()
        self._decoder(torch.tensor([list(tokens)]), state)
        return time.perf_counter() - began

    @torch.inference_mode()
    def decode(self, steps: int) -> float:
        return self._decode(self._state.clone(), steps)

    @torch.inference_mode()
    def decode_together(self, sessions: int, steps: int) -> float:
        one = self._state.tensors()
        repeated = {name: tensor.repeat(sessions, *[1] * (tensor.dim() - 1)) for name, tensor in one.items()}
        return self._decode(MemoryState(repeated), steps)

    def state_bytes(self) -> int:
        return self._state.nbytes

    def _decode(self, state: MemoryState, steps: int) -> float:
        torch.set_num_threads(self._threads)
        logits = self._decoder.read_out(state.read("hidden"))
        began = time.perf_counter()
        for _ in range(steps):
            logits, state = self._decoder(logits.argmax(dim=-1, keepdim=True), state)
        return (time.perf_counter() - began) / steps


class LlamaCpp:
    """llama-cpp-python over the same GGUF, through its low-level interface, which alone takes several sequences."""

    def __init__(self, gguf: Path, context: int, sessions: int, threads: int) -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        self.name = f"llama.cpp ({llama_cpp.__version__})"
        llama_cpp.llama_backend_init()
        log = llama_cpp.llama_log_callback(lambda level, text, data: None)
        self._log = log  # must live as long as the library may call it
        llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
        self._model = llama_cpp.llama_model_load_from_file(str(gguf).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = context + ROOM * (sessions + 1)
        params.n_batch = params.n_ubatch = 512
        params.n_seq_max = sessions + 1
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(512, 0, 1)
        self._length = 0

    def read(self, tokens: Sequence[int]) -> float:
        self._api.llama_memory_clear(self._memory, True)
        began = time.perf_counter()
        for begin in range(0, len(tokens), 512):
            part = tokens[begin : begin + 512]
            self._run([(token, begin + place, 0) for place, token in enumerate(part)])
        self._length = len(tokens)
        return time.perf_counter() - began

    def ask(self, tokens: Sequence[int]) -> float:
        began = time.perf_counter()
        self._run([(token, self._length + place, 0) for place, token in enumerate(tokens)])
        seconds = time.perf_counter() - began
        self._api.llama_memory_seq_rm(self._memory, 0, self._length, -1)
        return seconds

    def decode(self, steps: int) -> float:
        return self._decode([0], steps)

    def decode_together(self, sessions: int, steps: int) -> float:
        copies = list(range(1, sessions + 1))
        for copy in copies:
            self._api.llama_memory_seq_cp(self._memory, 0, copy, -1, -1)
        seconds = self._decode(copies, steps)
        for copy in copies:
            self._api.llama_memory_seq_rm(self._memory, copy, -1, -1)
        return seconds

    def state_bytes(self) -> int:
        return int(self._api.llama_state_seq_get_size(self._context, 0))

    @property
    def _memory(self) -> Any:
        return self._api.llama_get_memory(self._context)

    def _decode(self, sessions: Sequence[int], steps: int) -> float:
        token = 1
        began = time.perf_counter()
        for step in range(steps):
            self._run([(token, self._length + step, session) for session in sessions], each=True)
            scores = self._api.llama_get_logits_ith(self._context, len(sessions) - 1)
            token = int(
                torch.frombuffer(
                    ctypes.cast(scores, ctypes.POINTER(ctypes.c_float * self._vocabulary)).contents, dtype=torch.float32
                ).argmax()
            )
        seconds = (time.perf_counter() - began) / steps
        for session in sessions:
            self._api.llama_memory_seq_rm(self._memory, session, self._length, -1)
        return seconds

    def _run(self, entries: Sequence[tuple[int, int, int]], each: bool = False) -> None:
        """Take (token, position, sequence) in. Scores behind the last, or behind `each`."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for place, (token, position, sequence) in enumerate(entries):
            batch.token[place], batch.pos[place] = token, position
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
            batch.logits[place] = each or place == len(entries) - 1
        if failed := self._api.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode says {failed}")


class Transformers:
    """transformers in bfloat16, with its fused attention and its growing cache, which it copies at every token."""

    def __init__(self, model: str, threads: int) -> None:
        import transformers

        from bench.transformers_model import of_transformers

        self.name = f"transformers ({transformers.__version__})"
        self._threads = threads
        self._model = of_transformers(load_checkpoint(model, dtype=torch.bfloat16))
        self._cache: Any = None
        self._scores = torch.zeros(1, 1)

    @torch.inference_mode()
    def read(self, tokens: Sequence[int]) -> float:
        torch.set_num_threads(self._threads)
        self._cache = None
        began = time.perf_counter()
        for begin in range(0, len(tokens), 512):
            self._run(torch.tensor([list(tokens[begin : begin + 512])]))
        return time.perf_counter() - began

    @torch.inference_mode()
    def ask(self, tokens: Sequence[int]) -> float:
        began = time.perf_counter()
        self._run(torch.tensor([list(tokens)]))
        seconds = time.perf_counter() - began
        self._cache.crop(-len(tokens))
        return seconds

    @torch.inference_mode()
    def decode(self, steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            self._run(self._scores.argmax(dim=-1, keepdim=True))
        seconds = (time.perf_counter() - began) / steps
        self._cache.crop(-steps)
        return seconds

    @torch.inference_mode()
    def decode_together(self, sessions: int, steps: int) -> float:
        self._cache.batch_repeat_interleave(sessions)
        self._scores = self._scores[:1].repeat(sessions, 1)
        seconds = self.decode(steps)
        self._cache.batch_select_indices(torch.tensor([0]))
        self._scores = self._scores[:1]
        return seconds

    def state_bytes(self) -> int:
        layers = self._cache.layers
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)

    def _run(self, tokens: torch.Tensor) -> None:
        found = self._model(tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache, self._scores = found.past_key_values, found.logits[:, -1]
