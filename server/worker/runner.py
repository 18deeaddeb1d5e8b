"""One pair of a model and a memory at work: a decoder, its slab of resident states, and what runs on them.

Here and in `runners.py` the server meets torch. All methods but those of `TextReader`, and those that say otherwise, run on one
thread, the compute thread, one after another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.codec import check_values, decode_state, encode_state
from models.errors import StateError
from models.load import LoadedModel
from models.passage import Lifted, Passage
from models.recorded import RecordedSteps
from models.sampling import Sample as Sample
from models.sampling import Sampler, Sampling
from models.state import MemoryState, spec_nbytes
from models.tokenizer import TextStream, Tokenizer
from server.errors import InvalidRequest, StateRefused
from server.messages import (
    Inspected,
    LayerMemory,
    Offered,
    Remembered,
    SampledLogprobs,
    SamplingParams,
    TokenLogprob,
)
from server.pairs import Pair
from server.worker.text import TextReader


class Voice:
    """How one generation chooses its tokens, and what text they make."""

    def __init__(self, params: SamplingParams, tokenizer: Tokenizer) -> None:
        self.penalizes = params.repetition_penalty != 1.0
        self.tells_logprobs = params.logprobs is not None
        self._sampler = Sampler(
            Sampling(
                temperature=params.temperature,
                top_p=params.top_p,
                top_k=params.top_k,
                min_p=params.min_p,
                repetition_penalty=params.repetition_penalty,
                seed=params.seed,
                logprobs=params.logprobs,
            )
        )
        self._tokenizer = tokenizer
        self._stream = TextStream(tokenizer, params.stop)

    def choose(self, logits: Tensor, recent: Tensor) -> Sample:
        """The next token, from float32 logits (V,)."""
        return self._sampler.sample(logits, recent)

    def skip(self, count: int) -> None:
        """Leave out the random numbers of `count` tokens that were chosen before."""
        self._sampler.skip(count)

    def push(self, token: int) -> str:
        """Text that became certain with this token."""
        return self._stream.push(token)

    def finish(self) -> str:
        """Text held back until now."""
        return self._stream.finish()

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete."""
        return self._stream.stopped

    def ends(self, token: int) -> bool:
        """Whether the model itself ends its turn with this token."""
        return token in self._tokenizer.eos_ids

    def logprobs(self, sample: Sample) -> SampledLogprobs | None:
        """The sample as clients see it, or None when they did not ask."""
        if sample.logprob is None:
            return None
        top = tuple(
            TokenLogprob(token=self._tokenizer.token_text(token), token_id=token, logprob=logprob)
            for token, logprob in sample.top
        )
        text = self._tokenizer.token_text(sample.token)
        return SampledLogprobs(token=text, token_id=sample.token, logprob=sample.logprob, top=top)


@dataclass(frozen=True)
class Feed:
    """One session's part of a step: tokens to take in, and the voice that samples after the last of them, if any.

    Behind them `ahead` others are sure to be taken in, whatever happens: they are journaled, or the session is a scratch copy.
    """

    key: str
    row: int
    tokens: Sequence[int]
    voice: Voice | None
    ahead: int = 0


class Runner:
    """See the top of this file. Its slab is there from `lay_out` on."""

    def __init__(self, pair: Pair, model: LoadedModel, device: torch.device) -> None:
        self._model, self._device = model, device
        self._passage = Passage(device)
        self._recorded: RecordedSteps | None = None
        self._slab: MemoryState
        self.reader = TextReader(model.tokenizer)
        self.offered = Offered(
            model=pair.model,
            model_fingerprint=model.fingerprint,
            memory=pair.memory,
            state_bytes=spec_nbytes(model.kind.spec),
            trained_context=model.decoder.config.trained_context,
            parameters=model.parameters,
        )

    @property
    def spare_rows(self) -> int:
        """Rows of the slab that no session gets: recorded steps need one."""
        return int(self._device.type == "cuda" and self._model.decoder.memory.still)

    @torch.inference_mode()
    def lay_out(self, rows: int) -> None:
        """Set memory aside for so many sessions. Raises what torch does where there is too little."""
        self._slab = self._model.decoder.empty_state(rows + self.spare_rows)
        if self.spare_rows:
            self._recorded = RecordedSteps(self._model.decoder, self._slab, spare=rows)

    def voice(self, params: SamplingParams) -> Voice:
        """A new generation's way of choosing tokens."""
        return Voice(params, self._model.tokenizer)

    @torch.inference_mode()
    def run(self, feeds: Sequence[Feed]) -> Mapping[str, Sample]:
        """One step. All sessions that take one token share a forward pass; so do those that take more, as long as each of them has
        some left. Returns the sampled tokens by key.
        """
        samples: dict[str, Sample] = {}
        by_row = sorted(feeds, key=lambda feed: feed.row)
        one = [feed for feed in by_row if len(feed.tokens) == 1]
        if one:
            samples |= self._take(one, 0, 1)
        left, taken = [feed for feed in by_row if len(feed.tokens) > 1], 0
        while left:
            until = min(len(feed.tokens) for feed in left)
            samples |= self._take(left, taken, until)
            left, taken = [feed for feed in left if len(feed.tokens) > until], until
        for feed in feeds:
            if not feed.tokens:
                hidden = self._slab.select([feed.row]).read("hidden")
                samples |= self._sample([feed], self._model.decoder.read_out(hidden))
        return samples

    def _take(self, feeds: Sequence[Feed], begin: int, end: int) -> Mapping[str, Sample]:
        """Tokens `begin` to `end` of all of them, and what is sampled behind the last one of some."""
        rows = [feed.row for feed in feeds]
        decoder, state = self._model.decoder, self._slab.select(rows)
        if self._recorded is not None and end == 1 and self._recorded.suits(state.positions):
            return self._sample(feeds, self._recorded.step([feed.tokens[0] for feed in feeds], rows))
        tokens = torch.tensor([list(feed.tokens[begin:end]) for feed in feeds], device=self._device)
        ahead = min(len(feed.tokens) - end + feed.ahead for feed in feeds)
        if ahead:
            decoder.read_through(tokens, state, ahead)
            return {}
        hidden, _ = decoder.run(tokens, state)
        over = [row for row, feed in enumerate(feeds) if feed.voice is not None and len(feed.tokens) == end]
        return self._sample([feeds[row] for row in over], decoder.read_out(hidden[over, -1])) if over else {}

    def _sample(self, feeds: Sequence[Feed], logits: Tensor) -> dict[str, Sample]:
        voices = [(feed, feed.voice, logits[index]) for index, feed in enumerate(feeds) if feed.voice]
        return {feed.key: voice.choose(scores, self._recent(feed)) for feed, voice, scores in voices}

    def _recent(self, feed: Feed) -> Tensor:
        """Token ids that the repetition penalty looks at: those in the ring, at most W + S."""
        if feed.voice is None or not feed.voice.penalizes:
            return torch.empty(0, dtype=torch.int32)
        state = self._slab.select([feed.row])
        return state.read("tokens")[0, : state.positions[0]]

    @torch.inference_mode()
    def lift(self, row: int) -> Lifted:
        """A copy of a resident state, for `encode`."""
        return self._passage.lift(self._slab.select([row]))

    @torch.inference_mode()
    def encode(self, lifted: Lifted) -> tuple[int, bytes]:
        """A state as bytes, and the tokens it has taken in. On any thread."""
        state = lifted.wait()
        return state.positions[0], encode_state(state, self._model.kind)

    @torch.inference_mode()
    def decode(self, snapshot: bytes | None) -> MemoryState | None:
        """What bytes hold, for `lay`; None for None. On any thread. Raises `StateRefused` when they must not be loaded."""
        if snapshot is None:
            return None
        try:
            return decode_state(snapshot, self._model.kind)
        except StateError as error:
            raise StateRefused(str(error)) from error

    @torch.inference_mode()
    def lay(self, row: int, state: MemoryState | None) -> int:
        """Fill a row, with an empty state for None. Returns the tokens it has taken in."""
        target = self._slab.select([row])
        if state is None:
            target.reset(self._model.kind.spec)
            return 0
        self._passage.lay(state, target)
        return state.positions[0]

    def save(self, row: int) -> tuple[int, bytes]:
        """`lift` and `encode` in one, where no step waits for it."""
        return self.encode(self.lift(row))

    def restore(self, row: int, snapshot: bytes | None) -> int:
        """`decode` and `lay` in one."""
        return self.lay(row, self.decode(snapshot))

    @torch.inference_mode()
    def check(self, position: int, state: bytes | None, tail: Sequence[int]) -> None:
        """Raise `InvalidRequest` for a saved state from outside that must not be loaded, or token ids that are none."""
        vocabulary = self._model.decoder.config.vocab_size
        if not all(0 <= token < vocabulary for token in tail):
            raise InvalidRequest("a token id of the session is not in this model's vocabulary", code="import_refused")
        if state is None:
            return
        try:
            decoded = decode_state(state, self._model.kind)
            check_values(decoded, self._model.kind.spec, vocabulary)
        except StateError as error:
            raise InvalidRequest(str(error), code="import_refused") from error
        if decoded.positions[0] != position:
            raise InvalidRequest(
                f"the state has taken in {decoded.positions[0]} tokens and not {position}", code="import_refused"
            )

    @torch.inference_mode()
    def copy(self, source: int, target: int) -> None:
        """Copy one resident state over another."""
        self._slab.select([target]).copy_from(self._slab.select([source]))

    @torch.inference_mode()
    def inspect(self, row: int) -> Inspected:
        """What a resident state's memory holds."""
        state = self._slab.select([row])
        memory, position = self._model.decoder.memory, state.positions[0]
        config = memory.config
        report = memory.report(state)
        evicted = config.evicted(position)
        return Inspected(
            memory=self.offered.memory,
            position=position,
            state_bytes=self.offered.state_bytes,
            folds=evicted // config.segment,
            local_tokens=position - evicted,
            layers=tuple(
                LayerMemory(layer=layer.layer, kv_heads=layer.heads, slots=layer.slots, used=layer.used)
                for layer in report.layers
            ),
            remembered=tuple(
                Remembered(position=begin, text=self._model.tokenizer.decode(tokens, skip_special=False))
                for begin, tokens in report.runs
            ),
        )
