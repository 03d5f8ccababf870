"""The official client, sync and async, streaming and not, against a real server."""

from __future__ import annotations

import asyncio

import openai
import pytest

TEXT = "Hello, wörld! 日本語"
TURNS = [{"role": "user", "content": "hi"}]


@pytest.fixture
def url(serve, canned):
    """A server that always answers ``TEXT``, and had one token of every prompt already."""
    return serve(canned.scripted(lambda request: canned.rounds(TEXT, reused=1))).url + "/v1"


@pytest.fixture
def client(url):
    """The sync client."""
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def test_completion(client):
    reply = client.completions.create(model="toy", prompt="hi")
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == (TEXT, "stop")
    # two bytes of the prompt; "ö" and "日" have merged tokens, "ll" too, and the end-of-turn token counts
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (2, 22, 24)
    assert reply.usage.prompt_tokens_details.cached_tokens == 1
    assert (reply.object, reply.model, reply.system_fingerprint) == ("text_completion", "toy", "fp_toy")
    assert reply.id.startswith("cmpl-")


def test_completion_stream(client):
    chunks = list(client.completions.create(model="toy", prompt="hi", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == TEXT
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]
    assert len(chunks) > 5
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert not any(chunk.usage for chunk in chunks)


def test_chat(client):
    reply = client.chat.completions.create(model="toy", messages=TURNS)
    message = reply.choices[0].message
    assert (message.role, message.content, message.refusal) == ("assistant", TEXT, None)
    assert (reply.object, reply.choices[0].finish_reason) == ("chat.completion", "stop")


def test_chat_stream_with_usage(client):
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="toy", messages=TURNS, stream=True, stream_options=options))
    *parts, last = chunks
    assert (parts[0].choices[0].delta.role, parts[0].choices[0].delta.content) == ("assistant", "")
    assert all(part.choices[0].delta.role is None for part in parts[1:])
    assert "".join(part.choices[0].delta.content or "" for part in parts) == TEXT
    assert (parts[-1].choices[0].delta.content, parts[-1].choices[0].finish_reason) == (None, "stop")
    assert (last.choices, last.usage.completion_tokens) == ([], 22)
    assert last.usage.prompt_tokens_details.cached_tokens == 1
    assert all(part.usage is None for part in parts)


def test_async_client(url):
    async def both():
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            whole = client.chat.completions.create(model="toy", messages=TURNS)
            stream = await client.chat.completions.create(model="toy", messages=TURNS, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            return text, (await whole).choices[0].message.content

    assert asyncio.run(both()) == (TEXT, TEXT)


def test_parameters_that_openai_has_not(client):
    more = {"speculation": {"enabled": False}, "cache_salt": "mine"}
    assert client.completions.create(model="toy", prompt="hi", extra_body=more).choices[0].text == TEXT


def test_a_replayed_assistant_message_is_taken(client):
    first = client.chat.completions.create(model="toy", messages=TURNS).choices[0].message
    again = client.chat.completions.create(model="toy", messages=[*TURNS, first, *TURNS])
    assert again.choices[0].message.content == TEXT


def test_errors_have_their_classes(client):
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt", prompt="hi")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="toy", prompt="hi", logprobs=21)
    assert (refused.value.param, refused.value.type) == ("logprobs", "invalid_request_error")


def test_an_error_inside_a_stream_reaches_the_client(serve, canned):
    engine = canned.scripted(lambda request: [*canned.rounds("ab", sizes=(1,))[:1], canned.failure("out of pages")])
    with openai.OpenAI(base_url=serve(engine).url + "/v1", api_key="none", max_retries=0) as client:
        stream = client.completions.create(model="toy", prompt="hi", stream=True)
        with pytest.raises(openai.APIError, match="out of pages"):
            list(stream)
        with pytest.raises(openai.InternalServerError, match="out of pages"):
            client.completions.create(model="toy", prompt="hi")


def test_models(client):
    assert [model.id for model in client.models.list()] == ["toy"]
    assert client.models.retrieve("toy").id == "toy"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
