"""Every parameter that shapes a reply, as a real engine honours it plainly and under speculation.

One cell of ``docs/parameters.md`` a test; ``python tests/server/test_parameters.py`` writes that page anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from redraft.benchmarks.soak_process import ServedProcess
from redraft.benchmarks.tiny import make_tiny_target
from redraft.server.schema_chat import ChatRequest
from redraft.server.schemas import CompletionRequest

WRITTEN = Path(__file__).parents[2] / "docs" / "parameters.md"
Reply = Mapping[str, Any]
MODES: dict[str, dict[str, Any]] = {
    "plain": {"speculation": {"enabled": False}},
    "chain": {"speculation": {"max_nodes": 1}},
    "tree": {},
    "grammar": {"structured_outputs": {"regex": "[a-f ]{4,40}"}},
}
"""How a request is decoded.  A chain drafts one token a round, a tree up to seven; a grammar stands beside a tree."""
TITLES = {"plain": "plain", "chain": "chain", "tree": "tree", "grammar": "tree and grammar"}


@dataclass(frozen=True)
class Parameter:
    """One parameter with a value that shows."""

    body: dict[str, Any]
    shows: Callable[[Reply, Reply], bool]
    """Whether a reply shows it, beside one without it."""
    chat: bool = False
    refused: tuple[str, ...] = ()
    """Modes in which it is refused."""
    beside: dict[str, Any] | None = None
    """What else both requests have."""


def texts(reply: Reply) -> list[str]:
    """Of all choices."""
    return [choice["text"] if "text" in choice else choice["message"]["content"] for choice in reply["choices"]]


def differs(reply: Reply, without: Reply) -> bool:
    return texts(reply) != texts(without)


def made(reply: Reply) -> int:
    return int(reply["usage"]["completion_tokens"])


def finish(reply: Reply) -> str:
    return str(reply["choices"][0]["finish_reason"])


def told(reply: Reply, without: Reply) -> bool:
    """Log-probabilities of every token, none of which is above 0."""
    scores = reply["choices"][0]["logprobs"]["token_logprobs"]
    return len(scores) >= made(reply) - 1 and all(score is None or score <= 0 for score in scores)


HOT = {"temperature": 1.2, "seed": 7}
STOPS = ["gr", " ", "e", "b"]
END = {"logit_bias": {"511": 100}}
"""Makes the end of a turn the only thing to say."""
BIAS = {"logit_bias": {str(token): -100 for token in range(1, 500, 2)}}
WORD = [{"role": "user", "content": "say it"}]
PARAMETERS: dict[str, Parameter] = {
    "temperature": Parameter({"temperature": 1.5}, differs, beside={"seed": 7}),
    "top_p": Parameter({"top_p": 0.05}, differs, beside=HOT),
    "top_k": Parameter({"top_k": 1}, differs, beside=HOT),
    "min_p": Parameter({"min_p": 0.9}, differs, beside=HOT),
    "seed": Parameter({"seed": 8}, differs, beside=HOT),
    "n": Parameter({"n": 3}, lambda reply, _: len(set(texts(reply))) == 3, beside=HOT),
    "best_of": Parameter({"best_of": 3}, lambda reply, without: made(reply) > made(without), beside=HOT),
    "max_tokens": Parameter({"max_tokens": 5}, lambda reply, _: made(reply) <= 5),
    "max_completion_tokens": Parameter({"max_completion_tokens": 5}, lambda reply, _: made(reply) <= 5, chat=True),
    "min_tokens": Parameter(
        {"min_tokens": 20}, lambda reply, _: made(reply) >= 20, refused=("grammar",), beside={"stop": STOPS}
    ),
    "stop": Parameter({"stop": STOPS}, lambda reply, _: finish(reply) == "stop"),
    "stop_token_ids": Parameter(
        {"stop_token_ids": list(range(64, 128))}, lambda reply, without: made(reply) < made(without), beside=HOT
    ),
    "include_stop_str_in_output": Parameter(
        {"include_stop_str_in_output": True},
        lambda reply, _: texts(reply)[0].endswith(tuple(STOPS)) or finish(reply) == "length",
        beside={"stop": STOPS},
    ),
    "ignore_eos": Parameter(
        {"ignore_eos": True}, lambda reply, _: finish(reply) == "length", refused=("grammar",),
        beside=END,
    ),
    "presence_penalty": Parameter({"presence_penalty": 2.0}, differs),
    "frequency_penalty": Parameter({"frequency_penalty": 2.0}, differs),
    "repetition_penalty": Parameter({"repetition_penalty": 3.0}, differs),
    "logit_bias": Parameter(BIAS, differs),
    "logprobs": Parameter({"logprobs": 3}, told),
    "top_logprobs": Parameter(
        {"top_logprobs": 4},
        lambda reply, _: all(len(t["top_logprobs"]) == 4 for t in reply["choices"][0]["logprobs"]["content"]),
        chat=True,
        beside={"logprobs": True},
    ),
    "prompt_logprobs": Parameter(
        {"prompt_logprobs": 2},
        lambda reply, _: len(reply["choices"][0]["prompt_logprobs"]) == reply["usage"]["prompt_tokens"],
    ),
    "echo": Parameter({"echo": True}, lambda reply, without: texts(reply) == [PROMPT + texts(without)[0]]),
    "skip_special_tokens": Parameter(
        {"skip_special_tokens": False},
        lambda reply, _: texts(reply)[0].endswith("<|im_end|>"),
        beside={"include_stop_str_in_output": True, **END},
    ),
    "response_format": Parameter(
        {"response_format": {"type": "json_object"}},
        lambda reply, _: texts(reply)[0].startswith("{"),
        refused=("grammar",),
    ),
    "structured_outputs": Parameter(
        {"structured_outputs": {"choice": ["maybe", "never"]}}, lambda reply, _: texts(reply)[0] in ("maybe", "never"),
        refused=(),
    ),
    "guided_json": Parameter(
        {"guided_json": {"enum": ["x"]}}, lambda reply, _: texts(reply)[0] == '"x"', refused=("grammar",)
    ),
    "guided_regex": Parameter({"guided_regex": "z{3}"}, lambda reply, _: texts(reply) == ["zzz"], refused=("grammar",)),
    "guided_choice": Parameter({"guided_choice": ["q"]}, lambda reply, _: texts(reply) == ["q"], refused=("grammar",)),
    "guided_grammar": Parameter(
        {"guided_grammar": 'start: "z"'}, lambda reply, _: texts(reply) == ["z"], refused=("grammar",)
    ),
    "cache_salt": Parameter({"cache_salt": "mine"}, lambda reply, without: not differs(reply, without)),
    "user": Parameter({"user": "someone"}, lambda reply, without: not differs(reply, without)),
    "include_metrics": Parameter({"include_metrics": True}, lambda reply, _: "tokens_per_second" in reply["metrics"]),
    "include_rounds": Parameter({"include_rounds": True}, lambda reply, _: bool(reply["rounds"])),
}  # fmt: skip
ELSEWHERE = {
    "model": "tests/server/test_system.py",
    "prompt": "tests/server/test_choices.py, test_bad_input.py",
    "messages": "tests/server/test_bad_chat.py, test_chat_output.py",
    "stream": "every cell: streams are whole replies in pieces",
    "stream_options": "tests/server/test_text_options.py",
    "speculation": "the columns themselves",
    "suffix": "tests/server/test_text_options.py",
    "add_special_tokens": "tests/server/test_text_options.py",
    "tools": "tests/server/test_chat_output.py",
    "tool_choice": "tests/server/test_chat_grammar.py",
    "parallel_tool_calls": "tests/server/test_chat_grammar.py, test_chat_output.py",
    "chat_template_kwargs": "tests/server/test_chat_output.py",
    "reasoning_effort": "tests/server/test_chat_output.py",
    "add_generation_prompt": "tests/server/test_text_options.py, test_bad_chat.py",
    "continue_final_message": "tests/server/test_bad_chat.py, test_chat_output.py",
}
"""Parameters that make a prompt or carry a reply, and do not meet decoding: where they are tested."""


def page() -> str:
    """The page."""
    lines = [
        "# Parameters under speculation",
        "",
        "Made by `python tests/server/test_parameters.py`; a test keeps it true. Every cell is a test of its own,",
        "`tests/server/test_parameters.py::test_cell[PARAMETER-MODE]`: a request to a real engine with the parameter,",
        "decoded that way, answers as plain decoding does, token for token, whole and streamed, and shows what the",
        "parameter asks for. *400*: refused, and the test says so.",
        "",
        f"| parameter | as tested | {' | '.join(TITLES.values())} |",
        f"| --- | --- | {' | '.join('---' for _ in TITLES)} |",
    ]
    for name, parameter in PARAMETERS.items():
        cells = ["400" if mode in parameter.refused else "equal" for mode in MODES]
        value = json.dumps(next(iter(parameter.body.values())), ensure_ascii=False)
        value = value if len(value) <= 40 else value[:37] + "..."
        lines.append(f"| `{name}` | `{value.replace('|', chr(92) + '|')}` | {' | '.join(cells)} |")
    lines += [
        "",
        "Chain: one drafted token a round; tree: up to seven. The grammar is a regular expression, in whose place",
        "`structured_outputs` itself stands.",
        "",
        "What makes a prompt, or only carries a reply, does not meet decoding:",
        "",
        "| parameter | tested by |",
        "| --- | --- |",
        *(f"| `{name}` | {where} |" for name, where in ELSEWHERE.items()),
        "",
    ]
    return "\n".join(lines)


PLAIN = {"speculation": {"enabled": False}}
BASE = {"model": "tiny", "temperature": 0, "max_tokens": 24}
PROMPT = "fade fade fade bed bed fade fade fade"


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A server that drafts all it can: n-gram trees of seven nodes on a tiny target."""
    folder = tmp_path_factory.mktemp("parameters")
    make_tiny_target(folder / "tiny", tokenizer=True)
    options = ["--target", str(folder / "tiny"), "--device", "cpu", "--dtype", "fp32", "--draft", "ngram"]
    with (
        ServedProcess([*options, "--speculation", "7", "--max-model-len", "256"], folder / "output") as process,
        httpx2.Client(base_url=process.url, timeout=60) as client,
    ):
        yield client


def body_of(name: str, mode: str, *, without: bool = False) -> tuple[str, dict[str, Any]]:
    """Path and body of a request with the parameter, or without it."""
    parameter = PARAMETERS[name]
    body = BASE | MODES[mode] | (parameter.beside or {}) | ({} if without else parameter.body)
    if not parameter.chat:
        return "/v1/completions", {"prompt": PROMPT, **body}
    if "max_completion_tokens" in body:
        del body["max_tokens"]
    return "/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT}], **body}


def told(reply: dict[str, Any]) -> list[dict[str, Any]]:
    """What must not depend on speculation."""
    choices: list[dict[str, Any]] = reply["choices"]
    return choices


def streamed(http: httpx2.Client, path: str, body: dict[str, Any]) -> list[str]:
    """Texts of all choices of a stream, by index."""
    found: dict[int, str] = {}
    for event in http.post(path, json={**body, "stream": True}).text.split("\n\n"):
        if event.startswith("data: {"):
            for choice in json.loads(event[6:]).get("choices", []):
                text = choice["text"] if "text" in choice else choice["delta"].get("content", "")
                found[choice["index"]] = found.get(choice["index"], "") + text
    return [found[index] for index in sorted(found)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PARAMETERS)
def test_cell(http: httpx2.Client, name: str, mode: str) -> None:
    parameter = PARAMETERS[name]
    path, body = body_of(name, mode)
    reply = http.post(path, json=body)
    if mode in parameter.refused:
        assert reply.status_code == 400, reply.text
        assert http.post(path, json=body_of(name, mode, without=True)[1]).status_code == 200
        return
    assert reply.status_code == 200, reply.text
    plain = http.post(path, json=body | PLAIN).json()
    assert told(reply.json()) == told(plain)
    assert reply.json()["usage"]["completion_tokens"] == plain["usage"]["completion_tokens"]
    without = http.post(path, json=body_of(name, mode, without=True)[1])
    assert without.status_code == 200, without.text
    assert parameter.shows(reply.json(), without.json()), (texts(reply.json()), texts(without.json()))
    if name not in ("best_of", "prompt_logprobs"):  # which cannot be streamed
        assert streamed(http, path, body) == texts(reply.json())


def test_speculation_was_at_work(http: httpx2.Client) -> None:
    """Or the columns would all be the first one."""
    lengths = {}
    for mode in MODES:
        body = {**BASE, **MODES[mode], "prompt": PROMPT, "max_tokens": 40, "include_metrics": True}
        metrics = http.post("/v1/completions", json=body).json()["metrics"]["speculative_decoding"]
        lengths[mode] = (metrics["num_draft_tokens"], metrics["num_accepted_draft_tokens"])
    assert lengths["plain"] == (0, 0)
    assert all(drafted > 0 and accepted > 0 for mode, (drafted, accepted) in lengths.items() if mode != "plain"), (
        lengths
    )


def test_every_parameter_has_its_place() -> None:
    fields = {*CompletionRequest.model_fields, *ChatRequest.model_fields}
    assert fields == {*PARAMETERS, *ELSEWHERE}
    assert not set(PARAMETERS) & set(ELSEWHERE)


def test_the_page_says_what_is_tested() -> None:
    assert WRITTEN.read_text() == page(), "python tests/server/test_parameters.py writes it anew"


if __name__ == "__main__":
    WRITTEN.write_text(page())
