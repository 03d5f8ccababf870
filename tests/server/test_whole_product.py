"""``redraft serve`` as a user starts it, with the embedded target: the printed curl, the official client, metrics."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from redraft.benchmarks.soak_process import ServedProcess

LOOP = [{"role": "user", "content": "Repeat this line five times: the quick brown fox jumps over the lazy dog"}]


@dataclass
class Server:
    pid: int
    url: str
    last_line: str
    seconds: float
    """From the start of the process to its last line."""

    def samples(self, name: str) -> list[Sample]:
        with urllib.request.urlopen(f"{self.url}/metrics") as reply:
            families = text_string_to_metric_families(reply.read().decode())
        return [s for family in families for s in family.samples if s.name == name]

    def metric(self, name: str, **labels: str) -> float:
        samples = self.samples(name)
        return sum(s.value for s in samples if all(s.labels.get(k) == v for k, v in labels.items()))


@pytest.fixture(scope="module")
def server(smollm2: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    start = time.monotonic()
    with ServedProcess([], tmp_path_factory.mktemp("serve") / "output", environment) as process:
        last = process.printed.strip().splitlines()[-1]
        yield Server(process.popen.pid, process.url, last, time.monotonic() - start)
        process.popen.send_signal(signal.SIGINT)
        process.popen.wait(20)
        assert "Traceback" not in process.printed, process.printed


@pytest.fixture(scope="module")
def api(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_the_last_line_printed_is_a_curl_that_works(server: Server) -> None:
    words = shlex.split(server.last_line)
    assert words[0] == "curl"
    done = subprocess.run([*words, "--silent", "--fail"], capture_output=True, check=True)
    reply = json.loads(done.stdout)
    assert reply["choices"][0]["message"]["content"]
    assert reply["system_fingerprint"].startswith("fp_")


def test_a_second_start_is_ready_soon(server: Server) -> None:
    # the target is converted already; 10 s is what users are promised, on two busy cores too
    assert server.seconds < 10


def test_streamed_and_whole_replies_agree_and_count(server: Server, api: openai.OpenAI) -> None:
    before = server.metric("redraft_generation_tokens_total")
    arguments = {"model": "smollm2-135m", "messages": LOOP, "max_tokens": 60, "temperature": 0.7, "seed": 11}
    whole = api.chat.completions.create(**arguments, extra_body={"include_metrics": True})  # type: ignore[call-overload]
    stream = api.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True})  # type: ignore[call-overload]
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    statistics = whole.model_extra["metrics"]["speculative_decoding"]
    assert statistics["num_spec_steps"] == sum(statistics["acceptance_histogram"])
    assert statistics["mean_acceptance_length"] >= 1
    assert server.metric("redraft_generation_tokens_total") - before == 2 * whole.usage.completion_tokens
    (rounds,) = server.samples("redraft_spec_rounds_total")
    assert rounds.labels["model_name"] == "smollm2-135m"
    assert rounds.labels["draft"].startswith("smollm2-135m-dflash-sft+ngram-")
    assert rounds.value == server.metric("redraft_acceptance_length_count")
    assert server.metric("redraft_acceptance_length_sum") == server.metric("redraft_generation_tokens_total")


def test_choices_differ_and_the_same_seed_repeats(api: openai.OpenAI) -> None:
    def ask() -> list[str]:
        reply = api.completions.create(
            model="smollm2-135m", prompt="Once upon a time", max_tokens=16, temperature=1.0, seed=5, n=3
        )
        return [choice.text for choice in reply.choices]

    texts = ask()
    assert len(set(texts)) == 3
    assert ask() == texts


def test_a_client_that_leaves_frees_its_request(server: Server, api: openai.OpenAI) -> None:
    stream = api.chat.completions.create(
        model="smollm2-135m",
        messages=LOOP,
        max_tokens=4000,
        stream=True,
        temperature=1.0,
        seed=1,
        extra_body={"ignore_eos": True},  # by itself this reply ends after a dozen tokens, before anybody can leave
    )  # type: ignore[call-overload]
    next(iter(stream))
    assert server.metric("redraft_requests_running") == 1
    stream.close()
    deadline = time.monotonic() + 5
    while server.metric("redraft_requests_running"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert server.metric("redraft_requests_total", finish_reason="cancelled") == 1


def test_a_schema_is_followed_with_and_without_speculation(api: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "population_in_millions": {"type": "integer"}},
        "required": ["city", "population_in_millions"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}

    def ask(**extra: object) -> openai.types.chat.ChatCompletion:
        return api.chat.completions.create(
            model="smollm2-135m",
            messages=[{"role": "user", "content": "Name a large city and its population, as JSON."}],
            response_format=form,  # type: ignore[arg-type]
            max_tokens=80,
            temperature=0.8,
            seed=4,
            extra_body={"include_metrics": True, **extra},
        )

    drafted, plain = ask(), ask(speculation={"enabled": False})
    text = drafted.choices[0].message.content or ""
    assert text == plain.choices[0].message.content
    assert drafted.choices[0].finish_reason == "stop"
    found = json.loads(text)
    assert set(found) == {"city", "population_in_millions"}
    assert isinstance(found["population_in_millions"], int)
    # much of it leaves no choice: '{"city": "', then the name of the other property
    assert drafted.model_extra["metrics"]["speculative_decoding"]["num_accepted_draft_tokens"] >= 8  # type: ignore[index]


def test_refusals_leave_the_engine_as_it_was(api: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="suffix"):
        api.completions.create(model="smollm2-135m", prompt="a", suffix="b")
    with pytest.raises(openai.BadRequestError, match="8192"):
        api.completions.create(model="smollm2-135m", prompt=[5] * 9000)
    with pytest.raises(openai.NotFoundError):
        api.completions.create(model="gpt-5", prompt="a")
    reply = api.completions.create(model="smollm2-135m", prompt="a", max_tokens=2, temperature=0)
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 2


def test_when_the_engine_dies_requests_fail_clearly_and_health_says_so(server: Server, api: openai.OpenAI) -> None:
    """Last of all: nothing is served afterwards."""
    # beside the engine there is the process that renders chat templates
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    (child,) = [pid for pid in children if b"engine.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    stream = api.chat.completions.create(
        model="smollm2-135m", messages=LOOP, max_tokens=4000, stream=True, temperature=1.0, seed=2
    )  # type: ignore[call-overload]
    with stream:
        chunks = iter(stream)
        next(chunks)
        os.kill(int(child), signal.SIGKILL)
        with pytest.raises(openai.APIError, match="The engine has ended"):
            for _ in chunks:
                pass
    with pytest.raises(urllib.error.HTTPError) as health:
        urllib.request.urlopen(f"{server.url}/health")
    with health.value as reply:
        assert reply.code == 503
    with pytest.raises(openai.InternalServerError, match="engine has ended"):
        api.completions.create(model="smollm2-135m", prompt="a")
