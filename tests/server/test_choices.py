"""What a request asks for is what the engine gets, and each choice comes back in its place."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from redraft.server.engine.types import FinishReason, SamplingParams

GOOD = {"model": "toy", "prompt": "hi"}
TURNS = [{"role": "user", "content": "hi"}]


@pytest.fixture
def server(serve, canned):
    """Answers each choice with its own number and first prompt token."""
    return serve(canned.scripted(lambda r: canned.rounds(f"{r.request_id.rsplit('-')[-1]}:{chr(r.prompt[0] + 33)}")))


def asked(server, body, path="completions"):
    """The engine's requests for ``body``, and the reply."""
    engine = server.service.engine
    engine.requests.clear()
    reply = server.http.post(f"/v1/{path}", json=body)
    assert reply.status_code == 200, reply.text
    return engine.requests, reply


def test_parameters_reach_the_engine(server):
    body = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "seed": -3, "max_tokens": 9}
    (request,), _ = asked(server, {**GOOD, **body})
    assert request.params == SamplingParams(9, temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, seed=-3)
    more = {"presence_penalty": -1, "frequency_penalty": 0.5, "repetition_penalty": 1.2, "min_tokens": 3}
    ends = {"stop_token_ids": [7, 8], "ignore_eos": True, "logit_bias": {"5": -100, "0": 1.5}}
    for path, good in (("completions", GOOD), ("chat/completions", {"model": "toy", "messages": TURNS})):
        (request,), _ = asked(server, {**good, **body, **more, **ends}, path)
        params = SamplingParams(9, temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, seed=-3, **more)
        biased = replace(params, logit_bias=((5, -100.0), (0, 1.5)), stop_token_ids=(7, 8), ignore_eos=True)
        assert request.params == biased


@pytest.mark.parametrize(
    ("speculation", "max_nodes"),
    [
        (None, None),
        ({}, None),
        ({"enabled": None, "max_nodes": None}, None),
        ({"enabled": True}, None),
        ({"enabled": True, "max_nodes": 63}, 63),
        ({"max_nodes": 3}, 3),
        ({"max_nodes": 0}, 0),
        ({"enabled": False}, 0),
        ({"enabled": False, "max_nodes": 0}, 0),
    ],
)
def test_speculation_is_a_bound_on_nodes(server, speculation, max_nodes):
    for path, body in (("completions", GOOD), ("chat/completions", {"model": "toy", "messages": TURNS})):
        requests, _ = asked(server, {**body, "speculation": speculation, "n": 2}, path)
        assert [request.max_nodes for request in requests] == [max_nodes] * 2


def test_the_salt_reaches_the_engine(server):
    for path, body in (("completions", GOOD), ("chat/completions", {"model": "toy", "messages": TURNS})):
        for salt, expected in (("mine", "mine"), ("s" * 256, "s" * 256), (None, "")):
            requests, _ = asked(server, {**body, "cache_salt": salt, "n": 2}, path)
            assert [(request.cache_salt, request.reuse) for request in requests] == [(expected, True)] * 2


def test_defaults(server, tokenizer):
    (request,), _ = asked(server, {**GOOD, "seed": 1, "top_k": -1})
    assert request.params == SamplingParams(16, seed=1)
    assert request.prompt == tokenizer.encode("hi")
    (request,), _ = asked(server, {**GOOD, "prompt": "x" * 505})
    assert request.params.max_tokens == 7
    (request,), _ = asked(server, {"model": "toy", "messages": TURNS}, "chat/completions")
    assert request.prompt == tokenizer.encode("<user>hi\n<assistant>")
    assert request.params.max_tokens == 512 - len(request.prompt)


@pytest.mark.parametrize("names", [["max_tokens"], ["max_completion_tokens"], ["max_tokens", "max_completion_tokens"]])
def test_chats_two_names_of_the_maximum(server, names):
    body = {"model": "toy", "messages": TURNS, **dict.fromkeys(names, 5)}
    (request,), _ = asked(server, body, "chat/completions")
    assert request.params.max_tokens == 5


def test_content_parts_and_developer(server, tokenizer):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "be kind"}, {"role": "user", "content": parts}]
    (request,), _ = asked(server, {"model": "toy", "messages": messages}, "chat/completions")
    assert request.prompt == tokenizer.encode("<system>be kind\n<user>a\nb\n<assistant>")


def test_a_prompt_that_fills_the_context_with_its_reply(server):
    (request,), _ = asked(server, {**GOOD, "prompt": [1] * 500, "max_tokens": 12})
    assert (len(request.prompt), request.params.max_tokens) == (500, 12)


def test_seeds(server):
    def seeds(**body):
        return [request.params.seed for request in asked(server, {**GOOD, **body})[0]]

    assert seeds(seed=5) == [5]
    assert seeds(seed=5, prompt=["a", "b"]) == [5, 5]
    several = seeds(seed=5, n=4)
    assert len({*several, 5}) == 5
    assert seeds(seed=5, n=2) == several[:2]
    assert seeds(seed=6, n=4) != several
    assert seeds(seed=-1, n=2) == seeds(seed=2**64 - 1, n=2)
    assert all(0 <= seed < 2**64 for seed in several)
    assert seeds() != seeds()


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        pytest.param("a", ["0:a", "1:a"], id="text"),
        pytest.param([64], ["0:a", "1:a"], id="ids"),
        pytest.param(["a", "b"], ["0:a", "1:a", "2:b", "3:b"], id="texts"),
        pytest.param([[64], [65]], ["0:a", "1:a", "2:b", "3:b"], id="lists-of-ids"),
    ],
)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
def test_n_choices_of_each_prompt(server, prompt, texts, stream):
    body = {"prompt": prompt, "n": 2, "stream": stream, "stream_options": {"include_usage": True} if stream else None}
    requests, reply = asked(server, {**GOOD, **body})
    assert len({request.request_id for request in requests}) == len(texts)
    got = [""] * len(texts)
    replies = [json.loads(line[6:]) for line in reply.text.split("\n\n")[:-2]] if stream else [reply.json()]
    for part in replies:
        for choice in part["choices"]:
            got[choice["index"]] += choice["text"]
    assert got == texts
    prompts = len(texts) // 2
    # each reply is three bytes and the end-of-turn token
    assert replies[-1]["usage"] == {
        "prompt_tokens": prompts,
        "completion_tokens": 4 * len(texts),
        "total_tokens": prompts + 4 * len(texts),
        "prompt_tokens_details": {"cached_tokens": 0},
    }


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
@pytest.mark.parametrize(
    ("n", "reused", "cached"),
    [(1, (2, 1), 3), (2, (0, 2, 1, 2), 1), (2, (3, 3, 1, 1), 4), (3, (0, 2, 2, 1, 1, 2), 1)],
)
def test_cached_tokens_count_a_prompt_once(serve, canned, stream, n, reused, cached):
    server = serve(canned.scripted(lambda r: canned.rounds("ok", reused=reused[int(r.request_id.rsplit("-")[-1])])))
    body = {"prompt": ["abcd", "xy"], "n": n, "stream": stream}
    _, reply = asked(server, {**GOOD, **body, "stream_options": {"include_usage": True} if stream else None})
    last = json.loads(reply.text.split("\n\n")[-3][6:]) if stream else reply.json()
    assert last["usage"]["prompt_tokens"] == 6
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": cached}


def test_length(serve, canned):
    server = serve(canned.engine("abcdef", finish=FinishReason.LENGTH))
    _, reply = asked(server, GOOD)
    assert reply.json()["choices"][0] == {"index": 0, "text": "abcdef", "logprobs": None, "finish_reason": "length"}
    assert reply.json()["usage"]["completion_tokens"] == 6


def test_a_held_beginning_of_a_stop_string_is_shown_at_the_end(serve, canned):
    _, reply = asked(serve(canned.engine("abcST")), {**GOOD, "stop": ["STOP"]})
    assert reply.json()["choices"][0]["text"] == "abcST"


@pytest.mark.parametrize("usage", [True, False], ids=["usage", "no-usage"])
def test_reply_metrics(serve, canned, usage):
    server = serve(canned.engine("Hello, wörld! 日本語"))
    _, whole = asked(server, {**GOOD, "include_metrics": True})
    options = {"stream_options": {"include_usage": True}} if usage else {}
    _, stream = asked(server, {**GOOD, "include_metrics": True, "stream": True, **options})
    chunks = [json.loads(event[6:]) for event in stream.text.split("\n\n")[:-2]]
    assert not any("metrics" in chunk for chunk in chunks[:-1])
    assert (chunks[-1]["choices"] == []) == usage
    for metrics in (whole.json()["metrics"], chunks[-1]["metrics"]):
        # 22 tokens in rounds of 1, 3, 2, 4, 1, 3, 2, 4, 1, 1
        assert metrics["speculative_decoding"] == {
            "mean_acceptance_length": 2.2,
            "draft_acceptance_rate": 0.3,
            "acceptance_histogram": [4, 2, 2, 2, 0],
            "num_spec_steps": 10,
            "num_accepted_draft_tokens": 12,
            "num_draft_tokens": 40,
            "num_spec_tokens": 4,
        }
        assert metrics["time_to_first_token_ms"] > 0
        assert 0 < metrics["generation_time_ms"] == pytest.approx(metrics["mean_itl_ms"] * 21)
        assert metrics["tokens_per_second"] > 0
        assert metrics["queue_time_ms"] >= 0


def test_no_metrics_unasked(server):
    assert "metrics" not in asked(server, GOOD)[1].json()


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "abcdef"),
        ({"stop": "cd"}, "ab"),
        ({"stop": "cd", "include_stop_str_in_output": True}, "abcd"),
        ({"stop": ["f", "cd"], "min_tokens": 3}, "abcde"),
        ({"stop": ["cd"], "min_tokens": 2, "include_stop_str_in_output": True}, "abcd"),
        ({"stop": ["e"], "min_tokens": 6, "max_tokens": 6}, "abcdef"),
        ({"stop_token_ids": ["f"]}, "abcde"),
        ({"stop_token_ids": ["f"], "include_stop_str_in_output": True}, "abcdef"),
        ({"stop_token_ids": ["f"], "stop": "e", "include_stop_str_in_output": True}, "abcde"),
    ],
)
def test_ends_are_shown_when_asked_and_not_looked_for_before_min_tokens(serve, canned, tokenizer, body, text):
    """Rounds of 1, 3 and 2 tokens; the stop token comes last."""
    server = serve(canned.engine("abcdef", finish=FinishReason.STOP))
    if "stop_token_ids" in body:
        server.service.engine.script = lambda _: [
            replace(output, finish_reason=FinishReason.STOP if tokenizer.encode("f")[0] in output.tokens else None)
            for output in canned.rounds("abcdef", finish=FinishReason.LENGTH)
        ]
        body = {**body, "stop_token_ids": [tokenizer.encode(token)[0] for token in body["stop_token_ids"]]}
    for path, good in (("completions", GOOD), ("chat/completions", {"model": "toy", "messages": TURNS})):
        _, reply = asked(server, {**good, **body}, path)
        (choice,) = reply.json()["choices"]
        assert choice["finish_reason"] == "stop" or "max_tokens" in body
        assert (choice["text"] if path == "completions" else choice["message"]["content"]) == text


def test_the_models_own_end_is_text_like_any_other_when_it_ends_nothing(serve, canned, tokenizer):
    engine = canned.engine("abc", finish=FinishReason.LENGTH)
    engine.info = replace(canned.info, eos_token_ids=tokenizer.encode("b"))
    server = serve(engine)
    for ignored, text in ((True, "abc"), (False, "ac")):
        _, reply = asked(server, {**GOOD, "ignore_eos": ignored})
        assert reply.json()["choices"][0]["text"] == text
