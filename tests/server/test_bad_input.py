"""Every bad input gets its own clear 4xx in OpenAI's form, the engine never sees it, and the server goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest

GOOD = {"model": "toy", "prompt": "hi"}
GOOD_CHAT = {"model": "toy", "messages": [{"role": "user", "content": "hi"}]}
TWO_MAXIMA = {**GOOD_CHAT, "max_tokens": 5, "max_completion_tokens": 6}
USAGE_NOT_BOOL = {**GOOD, "stream": True, "stream_options": {"include_usage": 1}}
TOLD_CHAT = {**GOOD_CHAT, "prompt_logprobs": 0, "stream": True}
CONTINUOUS_ALONE = {**GOOD, "stream": True, "stream_options": {"continuous_usage_stats": True}}
CONTINUOUS_NOT_BOOL = {**GOOD, "stream": True, "stream_options": {"continuous_usage_stats": "yes"}}
HUGE = 2**63

BIASES = [
    {"x": 1}, {"1.0": 1}, {"-1": 1}, {"260": 1}, {"01": 1}, {" 1": 1}, {"١": 1}, {"9" * 5000: 1}, {"1": None},
    {"1": "5"}, {"1": True}, {"1": 100.1}, {"1": -101}, {"1": 10**400}, {str(i): 1 for i in range(1000)}, [], [[1, 1]],
    "x", 5,
]  # fmt: skip
BOTH = [
    ("model", [None, 5, [], {}]),
    ("temperature", [-0.1, 2.1, 1e308, "1", True, [1]]),
    ("top_p", [0, -1, 1.01, "1", False]),
    ("top_k", [-2, HUGE, 1.5, "5", True]),
    ("min_p", [-0.1, 1.1, "0"]),
    ("seed", [2**64, -(2**63) - 1, 1.5, "1", True, 10**400]),
    ("stop", ["", [""], ["a"] * 500_000, "x" * 1_000_000, [1], {"a": 1}, 5, ["a", None]]),
    ("n", [0, -1, 10**9, 1.5, "2", True]),
    ("stream", ["true", 1, []]),
    ("stream_options", [{"include_usage": True}, "x", [1]]),
    ("user", ["u" * 10_000, 5]),
    ("include_metrics", ["yes", 1]),
    ("speculation", ["off", 5, True, [], {"enabled": False, "max_nodes": 1}]),
    ("cache_salt", ["", "s" * 257, 5, True, ["s"]]),
    ("max_tokens", [0, -1, HUGE, 10**400, "5", 5.5, True]),
    ("frequency_penalty", [2.1, -2.1, "0", True, False, 1e308]),
    ("presence_penalty", [2.01, -3, [0]]),
    ("repetition_penalty", [0, -1, True, 1e-320, 101, "1"]),
    ("logit_bias", BIASES),
    ("logprobs", [-1, 10**9, "5", [1], {}]),
    ("top_logprobs", [1, -1, 21, 10**9, True, "5"]),
    ("tool_choice", ["required", "x", 5, {"type": "function"}]),
    ("best_of", [0, True, -1, 10**9, "2", 1.5]),
    ("echo", [0, "yes"]),
    ("suffix", ["tail", 5]),
    ("skip_special_tokens", ["no", 0]),
    ("include_stop_str_in_output", ["yes", 1]),
    ("add_special_tokens", ["yes", 1]),
    ("include_reasoning", [False]),
    ("reasoning_effort", ["low", 5]),
    ("store", [True]),
    ("metadata", [{"a": "b"}]),
    ("service_tier", ["flex"]),
    ("stop_token_ids", [[10**9], [-1], [260], [1.0], [True], ["1"], 5, "5", [1] * 65, [10**400]]),
    ("min_tokens", [-1, 10**9, HUGE, 1.5, "1", True]),
    ("ignore_eos", [1, "true"]),
    ("include_stop_str_in_output", [0, "yes"]),
    ("prompt_logprobs", [-1, 21, 10**9, True, "1", 1.5]),
    ("prompt_embeds", ["gASVAAAA"]),
    ("chat_template", ["{{ 1 }}"]),
    ("documents", [[]]),
    ("no_such_parameter", [0, False, "", "x"]),
]
OWN = {
    "completions": [("logprobs", [21, True, 1.5])],
    "chat/completions": [("logprobs", [0, 1, 5]), ("best_of", [2]), ("echo", [True])],
}
SPECULATION = [
    ("enabled", [1, 0, "false", [True]]),
    ("max_nodes", [-1, 64, HUGE, 10**400, 1.5, "5", True]),
    ("method", ["ngram", 0]),
    ("Enabled", [True]),
]
CASES = [(name, {name: value}) for name, values in BOTH for value in values] + [
    (f"speculation.{name}", {"speculation": {name: value}}) for name, values in SPECULATION for value in values
]


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_wrong_values_and_unsupported_parameters(server, check, goes_on, path):
    good = GOOD if path == "completions" else GOOD_CHAT
    for name, body in CASES + [(name, {name: value}) for name, values in OWN[path] for value in values]:
        error = check(server.http.post(f"/v1/{path}", json={**good, **body}), 400, name)
        assert name in error["message"], (name, body)
    goes_on(server)


PROMPTS = [
    None, "", [], [[]], [""], ["a", ""], ["a", 1], [1, "a"], [[1], "a"], [[1], []], [[[1]]], {"a": 1}, 5, True,
    [-1], [260], [HUGE], [10**400], [True], [1.0], [[1, -1]], ["x"] * 1_000_000, "x" * 512, [1] * 512, "日" * 100_000,
]  # fmt: skip


def test_prompts(server, check, goes_on):
    for prompt in PROMPTS:
        check(server.http.post("/v1/completions", json={**GOOD, "prompt": prompt}), 400, "prompt")
    goes_on(server)


def test_a_text_with_a_token_that_the_target_lacks(serve, canned, check, goes_on):
    engine = canned.engine("fine")
    engine.info = replace(canned.info, vocab_size=256)
    server = serve(engine)
    for text in ("日", "日" * 80):
        check(server.http.post("/v1/completions", json={**GOOD, "prompt": text}), 400, "prompt")
        chat = {**GOOD_CHAT, "messages": [{"role": "user", "content": text}]}
        error = check(server.http.post("/v1/chat/completions", json=chat), 400, "messages")
        assert error["code"] == "invalid_token_id"
    goes_on(server)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        pytest.param("completions", {**GOOD, "max_tokens": 511}, "prompt", id="does-not-fit"),
        pytest.param("completions", {**GOOD, "max_completion_tokens": 5}, "max_completion_tokens", id="chats-name"),
        pytest.param("completions", {**GOOD, "prompt": ["a"] * 65, "n": 2}, "n", id="prompts-times-n"),
        pytest.param("chat/completions", {**GOOD_CHAT, "logprobs": True, "top_logprobs": 2.0}, "top_logprobs", id="t"),
        pytest.param("completions", {**GOOD, "min_tokens": 17}, "min_tokens", id="min-beyond-default"),
        pytest.param("completions", {**GOOD, "max_tokens": 4, "min_tokens": 5}, "min_tokens", id="min-beyond-max"),
        pytest.param("chat/completions", {**GOOD_CHAT, "min_tokens": 505}, "min_tokens", id="min-beyond-context"),
        pytest.param("completions", {**GOOD, "n": 2, "include_metrics": True}, "include_metrics", id="metrics-of-n"),
        pytest.param("completions", {**GOOD, "prompt": ["a", "b"], "include_metrics": True}, "include_metrics", id="2"),
        pytest.param("completions", {**GOOD, "n": 3, "best_of": 2}, "best_of", id="best-of-fewer"),
        pytest.param("completions", {**GOOD, "best_of": 2, "stream": True}, "best_of", id="best-of-streamed"),
        pytest.param("completions", {**GOOD, "prompt": ["a"] * 65, "best_of": 2}, "best_of", id="times-best-of"),
        pytest.param("completions", {**GOOD, "best_of": 2, "include_metrics": True}, "include_metrics", id="metric"),
        pytest.param("completions", {**GOOD, "prompt_logprobs": 0, "stream": True}, "prompt_logprobs", id="told"),
        pytest.param("chat/completions", TOLD_CHAT, "prompt_logprobs", id="told-in-a-chat"),
        pytest.param("completions", {**GOOD, "stream": True, "stream_options": {"x": 1}}, "stream_options.x", id="opt"),
        pytest.param("completions", USAGE_NOT_BOOL, "stream_options.include_usage", id="usage-not-bool"),
        pytest.param("chat/completions", TWO_MAXIMA, "max_tokens", id="two-maxima"),
        pytest.param("chat/completions", {**GOOD_CHAT, "max_tokens": 511}, "messages", id="chat-does-not-fit"),
        pytest.param("completions", {**GOOD, "x" * 100_000: 1}, "x" * 99 + "…", id="long-name"),
        pytest.param("completions", {**GOOD, "\u0000\u202e\n": 1}, "\u0000\u202e\n", id="odd-name"),
        pytest.param("completions", {**GOOD, **{f"p{i}": 1 for i in range(100_000)}}, None, id="many-names"),
        pytest.param("completions", [GOOD], None, id="list"),
        pytest.param("completions", "text", None, id="text"),
        pytest.param("completions", {}, "model", id="empty"),
        pytest.param("completions", {"model": "toy"}, "prompt", id="no-prompt"),
        pytest.param("chat/completions", {"model": "toy"}, "messages", id="no-messages"),
        pytest.param("completions", CONTINUOUS_ALONE, "stream_options.continuous_usage_stats", id="continuous-alone"),
        pytest.param("completions", CONTINUOUS_NOT_BOOL, "stream_options.continuous_usage_stats", id="not-bool"),
    ],
)  # fmt: skip
def test_combinations_and_shapes(server, check, goes_on, path, body, param):
    check(server.http.post(f"/v1/{path}", json=body), 400, param)
    goes_on(server)


@pytest.mark.parametrize("model", ["gpt-4", "../toy", "TOY", "", "m" * 1_000_000, "\u0000"])
def test_unknown_model(server, check, goes_on, model):
    assert check(server.http.post("/v1/completions", json={**GOOD, "model": model}), 404, "model")["code"] == (
        "model_not_found"
    )
    goes_on(server)


def test_odd_but_good(server):
    """What looks odd and is honoured: neutral values, extreme numbers, NUL and special tokens inside a text."""
    neutral = {
        "frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": {}, "logprobs": False, "top_logprobs": 0, "n": 1,
        "response_format": {"type": "text"}, "tools": [], "tool_choice": "auto", "store": False, "echo": False,
        "best_of": 1, "suffix": None, "metadata": {}, "service_tier": "auto", "parallel_tool_calls": True,
        "unknown": None, "stream_options": None, "max_tokens": None, "seed": None, "stop": None, "user": "me",
        "speculation": None, "cache_salt": None, "repetition_penalty": 1, "min_tokens": 0, "stop_token_ids": [],
        "ignore_eos": False, "include_stop_str_in_output": False,
    }  # fmt: skip
    extreme = {
        "temperature": 1e-320, "top_p": 1e-320, "top_k": -1, "min_p": -0.0, "seed": -(2**63), "stop": ["a"] * 16,
        "presence_penalty": -2, "frequency_penalty": 2.0, "repetition_penalty": 0.01, "min_tokens": 16,
        "max_tokens": 16, "logit_bias": {str(token): -100 for token in range(260)}, "stop_token_ids": [0] * 64,
    }  # fmt: skip
    salted = {"cache_salt": "\u0000日" * 128, "speculation": {"max_nodes": 63, "enabled": None, "unknown": None}}
    for body in [neutral, extreme, salted, {"seed": 2**64 - 1}, {"prompt": "a\u0000b<|end|>"}, {"prompt": "x" * 511}]:
        reply = server.http.post("/v1/completions", json={**GOOD, **body})
        assert reply.status_code == 200, reply.text
    reply = server.http.post("/v1/chat/completions", json={**GOOD_CHAT, **neutral, "max_completion_tokens": None})
    assert reply.status_code == 200, reply.text
