"""What is told of prompts (``echo``, ``prompt_logprobs``), and the best of several choices (``best_of``)."""

from __future__ import annotations

import json
from dataclasses import replace

import openai
import pytest
from tokenizers import Tokenizer, processors

from redraft.server.engine.types import TokenLogprobs
from redraft.server.text import TextTokenizer

PROMPT = "Ab日 "
TEXT = "ö!"


def score(token: int, top: int) -> TokenLogprobs:
    tops = [(token + 1, -0.25), (token + 2, -0.5), (token + 3, -1.0)]
    return TokenLogprobs(-token / 128, 2, tuple(tops[:top]))


def script(canned, text):
    """Scores as asked for; the prompt's with the first round."""

    def answer(request):
        params = request.params
        rounds = canned.rounds(text(request))
        if params.logprobs is not None:
            rounds = [replace(o, logprobs=tuple(score(t, params.logprobs) for t in o.tokens)) for o in rounds]
        if params.prompt_logprobs is not None:
            told = tuple(score(token, params.prompt_logprobs) for token in request.prompt[1:])
            rounds[0] = replace(rounds[0], prompt_logprobs=told)
        return rounds

    return answer


@pytest.fixture(scope="module")
def server(running, canned):
    with running(canned.scripted(script(canned, lambda _: TEXT))) as server:
        yield server


def post(server, body, path="completions"):
    """The reply and the engine's requests."""
    server.service.engine.requests.clear()
    reply = server.http.post(f"/v1/{path}", json={"model": "toy", **body})
    assert reply.status_code == 200, reply.text
    return reply.json(), server.service.engine.requests


def test_echo_repeats_each_prompt_before_each_of_its_choices(server, tokenizer):
    other = list(tokenizer.encode("日x<|end|>"))
    for prompts, texts in (([PROMPT, "c"], [PROMPT, "c"]), ([other, [5]], ["日x", tokenizer.decode([5])])):
        reply, requests = post(server, {"prompt": prompts, "echo": True, "n": 2})
        assert [c["text"] for c in reply["choices"]] == [text + TEXT for text in texts for _ in range(2)]
        assert all(request.reuse and request.params.prompt_logprobs is None for request in requests)
        assert all(choice["logprobs"] is None for choice in reply["choices"])
        assert reply["usage"]["completion_tokens"] == 4 * (len(tokenizer.encode(TEXT)) + 1)


def test_echo_with_logprobs_tells_of_the_prompt_too(server, tokenizer):
    ids = [*tokenizer.encode(PROMPT), *tokenizer.encode(TEXT)]
    reply, requests = post(server, {"prompt": PROMPT, "echo": True, "logprobs": 2})
    (choice,) = reply["choices"]
    told = choice["logprobs"]
    assert [(r.reuse, r.params.logprobs, r.params.prompt_logprobs) for r in requests] == [(False, 2, 2)]
    assert told["tokens"] == ["A", "b", "bytes:\\xe6\\x97", "bytes:\\xa5", " ", "ö", "!"]
    assert told["token_logprobs"] == [None, *(-token / 128 for token in ids[1:])]
    assert told["top_logprobs"][0] is None
    assert [len(top) for top in told["top_logprobs"][1:]] == [3] * 6
    assert told["text_offset"] == [0, 1, 2, 2, 3, 4, 5]
    assert choice["text"] == PROMPT + TEXT
    assert "prompt_logprobs" not in choice


def test_echo_tells_where_tokens_stand_behind_special_ones(running, canned, tokenizer):
    """Those that the text names are part of it; those that the tokenizer puts around it are not."""
    own = Tokenizer.from_str(tokenizer._tokenizer.to_str())
    end = own.token_to_id("<|end|>")
    own.post_processor = processors.TemplateProcessing(single="<|end|> $A <|end|>", special_tokens=[("<|end|>", end)])
    around = TextTokenizer(own, tokenizer.chat_template)
    ids = list(around.encode("ab<|end|>c"))
    assert (ids[0], ids[3], ids[-1]) == (end, end, end)
    body = {"echo": True, "logprobs": 0, "max_tokens": 1}
    with running(canned.scripted(script(canned, lambda _: TEXT)), around) as server:
        for sent, text, offsets in (
            ({"prompt": "ab<|end|>c"}, "ab<|end|>c", [0, 0, 1, 2, 9, 10]),
            ({"prompt": "ab<|end|>c", "add_special_tokens": False}, "ab<|end|>c", [0, 1, 2, 9]),
            ({"prompt": ids}, "abc", [0, 0, 1, 2, 2, 3]),
            ({"prompt": ids, "skip_special_tokens": False}, "<|end|>ab<|end|>c<|end|>", [0, 7, 8, 9, 16, 17]),
        ):
            reply, _ = post(server, {**sent, **body})
            (choice,) = reply["choices"]
            assert choice["text"].startswith(text)
            assert choice["logprobs"]["text_offset"][: len(offsets)] == offsets
            assert choice["logprobs"]["text_offset"][len(offsets)] == len(text)


@pytest.mark.parametrize("logprobs", [None, 1])
def test_echo_streamed_is_the_whole_reply(server, logprobs):
    body = {"prompt": [PROMPT, "c"], "echo": True, "n": 2, "logprobs": logprobs}
    whole, _ = post(server, body)
    stream = server.http.post("/v1/completions", json={"model": "toy", **body, "stream": True}).text
    chunks = [json.loads(line[6:])["choices"][0] for line in stream.split("\n\n") if line.startswith("data: {")]
    for choice in whole["choices"]:
        own = [chunk for chunk in chunks if chunk["index"] == choice["index"]]
        assert "".join(chunk["text"] for chunk in own) == choice["text"]
        if logprobs is None:
            assert all(chunk["logprobs"] is None for chunk in own)
        else:
            for field, values in choice["logprobs"].items():
                assert [v for chunk in own if chunk["logprobs"] for v in chunk["logprobs"][field]] == values


def test_prompt_logprobs_are_vllms(server, tokenizer):
    ids = tokenizer.encode(PROMPT)
    reply, requests = post(server, {"prompt": [PROMPT, "A"], "prompt_logprobs": 1, "n": 2})
    assert [(r.reuse, r.params.logprobs, r.params.prompt_logprobs) for r in requests] == [(False, None, 1)] * 4
    first, again, one, _ = (choice["prompt_logprobs"] for choice in reply["choices"])
    assert first == again
    assert one == [None]
    assert first[0] is None
    assert first[1] == {
        str(ids[1] + 1): {"logprob": -0.25, "rank": 1, "decoded_token": "c"},
        str(ids[1]): {"logprob": -ids[1] / 128, "rank": 2, "decoded_token": "b"},
    }
    assert len(first) == len(ids)
    chat, _ = post(
        server, {"messages": [{"role": "user", "content": "A"}], "prompt_logprobs": 0, "n": 2}, "chat/completions"
    )
    ids = tokenizer.encode("<user>A\n<assistant>")
    assert [list(told or ()) for told in chat["prompt_logprobs"]] == [[], *([str(token)] for token in ids[1:])]
    assert all("prompt_logprobs" not in choice for choice in chat["choices"])


def test_echo_and_prompt_logprobs_each_have_their_own_number(server):
    reply, (request,) = post(server, {"prompt": PROMPT, "echo": True, "logprobs": 0, "prompt_logprobs": 3})
    assert request.params.prompt_logprobs == 3
    (choice,) = reply["choices"]
    assert [len(top or {}) for top in choice["logprobs"]["top_logprobs"]] == [0, 1, 1, 1, 1, 1, 1]
    assert [len(told or {}) for told in choice["prompt_logprobs"]] == [0, 4, 4, 4, 4]


def test_no_more_is_told_of_prompts_than_a_reply_can_hold(server, monkeypatch):
    """512 tokens of context at most here, so it takes many prompts; what is just allowed is told, in a thread."""
    prompts = ["a" * 500] * 50
    body = {"model": "toy", "prompt": prompts, "prompt_logprobs": 20, "max_tokens": 1}
    for more, param in (
        ({"n": 2}, "prompt_logprobs"),
        ({"prompt_logprobs": None, "logprobs": 20, "echo": True, "best_of": 2}, "logprobs"),
    ):
        reply = server.http.post("/v1/completions", json={**body, **more})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    reply, _ = post(server, {**body, "n": 1, "prompt_logprobs": 19})
    assert [len(choice["prompt_logprobs"]) for choice in reply["choices"]] == [500] * 50
    monkeypatch.setattr("redraft.server.respond.THREAD_SCORES", 3)
    test_echo_streamed_is_the_whole_reply(server, 1)


def test_the_best_are_shown_best_first(serve, canned, tokenizer):
    """By log-probability a token, not by their sum: the longest text here has the lowest sum and the best mean."""
    texts = ["zz", "c", "aaaaaaaaaaaaaaaa", "c", "b"]
    server = serve(canned.scripted(script(canned, lambda r: texts[int(r.request_id.rsplit("-")[-1]) % 5])))
    end = canned.info.eos_token_ids[0]

    def mean(text):
        ids = [*tokenizer.encode(text), end]
        return sum(-token / 128 for token in ids) / len(ids)

    ranked = sorted(range(5), key=lambda number: -mean(texts[number]))
    assert ranked[0] == 2
    reply, requests = post(server, {"prompt": ["x", "y"], "n": 3, "best_of": 5, "seed": 7})
    assert [c["text"] for c in reply["choices"]] == [texts[number] for number in ranked[:3]] * 2
    assert [c["index"] for c in reply["choices"]] == list(range(6))
    assert all(choice["logprobs"] is None for choice in reply["choices"])
    assert len({request.params.seed for request in requests}) == 5
    assert all(request.params.logprobs == 0 for request in requests)
    assert reply["usage"]["completion_tokens"] == 2 * sum(len(tokenizer.encode(text)) + 1 for text in texts)
    told, _ = post(server, {"prompt": "x", "best_of": 5, "logprobs": 1, "echo": True})
    (choice,) = told["choices"]
    assert choice["text"] == "x" + "a" * 16
    assert choice["logprobs"]["tokens"] == ["x", *"a" * 16]
    # of equals the first made; n of n are shown as they were made and ask for nothing
    server.service.engine.script = script(canned, lambda r: f"{r.request_id.rsplit('-')[-1]}")
    reply, requests = post(server, {"prompt": "x", "n": 4, "best_of": 4})
    assert [c["text"] for c in reply["choices"]] == ["0", "1", "2", "3"]
    assert all(request.params.logprobs is None for request in requests)


def test_the_official_client_reads_them(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        reply = client.completions.create(model="toy", prompt=PROMPT, echo=True, logprobs=1, best_of=2)
        assert reply.choices[0].logprobs.token_logprobs[0] is None
        assert reply.choices[0].text == PROMPT + TEXT
