"""Conversations: turns are opened and closed as the model's template has it."""

from __future__ import annotations

from palimpsest import Client
from palimpsest.types import Message

from bench.server_process import ServerProcess
from models.codec import StateKind
from models.load import LoadedModel
from models.tokenizer import Tokenizer
from tests.integration.continuing import assert_alike
from tests.integration.stored import assert_same_state, saved_state
from tests.integration.texts import plain_text

USER: Message = {"role": "user", "content": "Kelo rati nura? " + plain_text(1, 20)}
ASSISTANT: Message = {"role": "assistant", "content": plain_text(2, 20)}
AGAIN: Message = {"role": "user", "content": "Zumi <|im_end|> seti?"}


def plain(message: Message) -> dict[str, str]:
    """A message as the tokenizer takes it."""
    return {"role": message["role"], "content": message["content"]}


def length(tokenizer: Tokenizer, messages: list[Message], *, prompt: bool = False) -> int:
    """Tokens of a whole conversation read at once."""
    given = [plain(message) for message in messages]
    return len(tokenizer.encode_chat(given, turn="none", first=True, add_generation_prompt=prompt))


def test_messages_are_the_same_one_by_one_and_together(
    client: Client, server: ServerProcess, tiny: LoadedModel, state_kind: StateKind
) -> None:
    together, apart = client.sessions.create(), client.sessions.create()
    together.append(messages=[USER, ASSISTANT, AGAIN])
    for message in (USER, ASSISTANT, AGAIN):
        apart.append(messages=[message])
    assert apart.refresh().position == length(tiny.tokenizer, [USER, ASSISTANT, AGAIN])
    assert_alike(apart, together)
    assert_same_state(
        saved_state(server.data_dir, apart.id, state_kind), saved_state(server.data_dir, together.id, state_kind)
    )


def test_a_generation_after_a_question_answers_as_the_assistant(client: Client, tiny: LoadedModel) -> None:
    appended, asked = client.sessions.create(), client.sessions.create()
    appended.append(messages=[USER])
    answer = appended.generate(max_tokens=12, temperature=0)
    same = asked.generate(messages=[USER], max_tokens=12, temperature=0)
    assert (answer.text, answer.position) == (same.text, same.position)
    assert answer.position == length(tiny.tokenizer, [USER], prompt=True) + answer.usage.completion_tokens
    assert_alike(appended, asked)


def test_the_next_message_closes_the_answer_before_it(client: Client, tiny: LoadedModel) -> None:
    whole = [USER, ASSISTANT, AGAIN]
    behind_the_answer = length(tiny.tokenizer, whole) - length(tiny.tokenizer, [USER, ASSISTANT])
    for seed, ends in answers(client):
        session = client.sessions.create()
        answer = session.generate(messages=[USER], max_tokens=200, temperature=1.3, seed=seed)
        assert (answer.finish_reason == "stop") == ends
        added = session.append(messages=[AGAIN]).position - answer.position
        # The template writes an end token and a line end; one that was sampled is there already.
        closing = len(tiny.tokenizer.encode_template("\n" if ends else "<|im_end|>\n"))
        assert added == closing + behind_the_answer


def answers(client: Client) -> list[tuple[int, bool]]:
    """Two seeds: one with which the model ends its answer within 200 tokens, one with which it does not."""
    found: dict[bool, int] = {}
    for seed in range(60):
        session = client.sessions.create()
        answer = session.generate(messages=[USER], max_tokens=200, temperature=1.3, seed=seed, logprobs=0)
        last = (answer.logprobs or ())[-1].token
        if answer.finish_reason == "length" or last == "<|im_end|>":
            found.setdefault(answer.finish_reason == "stop", seed)
        if len(found) == 2:
            break
    return [(seed, ends) for ends, seed in found.items()]


def test_a_system_message_comes_first(client: Client, tiny: LoadedModel) -> None:
    system: Message = {"role": "system", "content": "Seti vozu."}
    session, reference = client.sessions.create(system="Seti vozu."), client.sessions.create()
    session.append(messages=[USER])
    reference.append(messages=[system, USER])
    assert session.refresh().position == length(tiny.tokenizer, [system, USER])
    assert_alike(session, reference)


def test_text_that_looks_like_the_template_stays_text(client: Client, tiny: LoadedModel) -> None:
    spoken, written = client.sessions.create(), client.sessions.create()
    spoken.append(messages=[USER])
    written.append(tiny.tokenizer.render([plain(USER)], add_generation_prompt=False))
    assert written.refresh().position > spoken.refresh().position
