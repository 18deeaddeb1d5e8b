from __future__ import annotations

import msgpack
import pytest
from pydantic import ValidationError

from server.errors import FAMILIES, Internal, NotFound, SessionBusy
from server.messages import (
    Answer,
    Append,
    Appended,
    Cancel,
    ChatMessage,
    Check,
    Done,
    Drain,
    Failed,
    Family,
    Forget,
    Generate,
    GenerationCompleted,
    GenerationDelta,
    GenerationStarted,
    Inspect,
    Inspected,
    LayerMemory,
    Measure,
    Measured,
    Offered,
    Point,
    Ready,
    Remembered,
    Request,
    Resume,
    SampledLogprobs,
    SamplingParams,
    TokenLogprob,
    pack,
    unpack_answer,
    unpack_request,
)

REQUESTS: list[Request] = [
    Append(session_id="s", text="a\0👩 \u2028", op_id="o", wait="journal"),
    Append(session_id="s", messages=(ChatMessage(role="user", content=""),)),
    Generate(session_id="s", generation_id="g", sampling=SamplingParams(stop=("a", "b"), seed=-(2**63), logprobs=2)),
    Generate(session_id="s", generation_id="g", op_id="o", if_match=frozenset({"1-00000000", "2-00000000"})),
    Resume(session_id="s", generation_id="g", after=7),
    Cancel(session_id="s", generation_id="g"),
    Cancel(session_id="s", generation_id="g", listener=5),
    Check(session_id="s", model="m", memory="slots", position=3, state=b"\0\xff", tail=(1, 2**31)),
    Check(session_id="s", model="m", memory="slots", position=0, state=None, tail=()),
    Append(session_id="s", text="a", if_match=frozenset()),
    Inspect(session_id="s"),
    Measure(),
    Forget(session_id="s"),
    Drain(seconds=1.5),
]
ANSWERS: list[Answer] = [
    Ready(
        worker=1,
        offers=tuple(
            Offered(
                model="m",
                model_fingerprint="f",
                memory=memory,
                state_bytes=2**40,
                trained_context=8,
                parameters=9,
            )
            for memory in ("slots", "window")
        ),
        places=64,
        device="cpu",
        dtype="float32",
        kernels="native",
    ),
    Measured(
        families=(
            Family(
                name="a_seconds",
                documentation="b",
                type="histogram",
                points=(Point(name="a_seconds_bucket", labels={"le": "+Inf"}, value=1.5),),
            ),
        )
    ),
    Appended(op_id=None, tokens=1, position=2, status="journaled", applied=False, state_bytes=3),
    GenerationStarted(generation_id="g", prompt_tokens=3),
    GenerationDelta(
        generation_id="g",
        index=0,
        text="é",
        logprobs=(
            SampledLogprobs(
                token="a", token_id=1, logprob=-0.5, top=(TokenLogprob(token="b", token_id=2, logprob=-1.0),)
            ),
        ),
    ),
    GenerationCompleted(
        generation_id="g",
        text="é",
        finish_reason="cancelled",
        prompt_tokens=1,
        completion_tokens=2,
        context_tokens=3,
        position=3,
    ),
    Inspected(
        memory="slots",
        position=1,
        state_bytes=2,
        folds=3,
        local_tokens=4,
        layers=(LayerMemory(layer=0, kv_heads=(1, 2), slots=3, used=4),),
        remembered=(Remembered(position=0, text="x"),),
    ),
    Done(found=False),
    Failed.of(SessionBusy("wait", param="p", retry_after=2.5)),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda message: message.kind)
def test_requests_survive_the_way(request_: Request) -> None:
    assert unpack_request(pack(7, request_)) == (7, request_)


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda message: message.kind)
def test_answers_survive_the_way(answer: Answer) -> None:
    assert unpack_answer(pack(8, answer)) == (8, answer)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_error_is_itself_again(name: str) -> None:
    error = FAMILIES[name]("what to do", param="field", code="narrow", retry_after=3.0)
    _, answer = unpack_answer(pack(1, Failed.of(error)))
    assert isinstance(answer, Failed)
    again = answer.error()
    assert type(again) is type(error)
    assert again.body() == error.body()
    assert again.retry_after == 3.0


def test_the_text_of_foreign_errors_stays_behind() -> None:
    failed = Failed.of(ValueError("the prompt was: my secret"))
    assert "secret" not in failed.model_dump_json()
    assert type(failed.error()) is Internal


def test_an_unknown_family_is_an_internal_error() -> None:
    assert type(Failed(family="Unheard", message="x").error()) is Internal


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "append", "session_id": "s", "text": "a", "surprise": 1},
        {"kind": "unknown"},
        {"session_id": "s"},
        {"kind": "cancel", "session_id": "s"},
        {"kind": "append", "session_id": "s", "wait": "never"},
    ],
)
def test_what_is_no_message_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        unpack_request(msgpack.packb([1, fields]))


def test_messages_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        REQUESTS[0].session_id = "other"  # type: ignore[union-attr]
    assert NotFound("x").retry_after is None
