"""A real Prometheus scrapes ``redraft serve`` under real traffic; every rule, alert and panel is asked of it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from redraft.benchmarks.tiny import make_tiny_target

Json = dict[str, Any]
SERVE = "from redraft.server.cli import main; main()"
SCRAPES = 4
"""Scrapes, one a second, after which rates are known of whatever happened between the first and the last."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def read(url: str, body: Json | None = None) -> bytes:
    """What is answered, whatever the status."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return bytes(reply.read())
    except urllib.error.HTTPError as error:
        return bytes(error.read())


def wait_for(check: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if check():
                return
        except urllib.error.URLError:
            pass
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@dataclass(frozen=True)
class Running:
    server: str
    prometheus: str

    def query(self, expr: str) -> list[Json]:
        reply = json.loads(read(f"{self.prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": expr})))
        assert reply["status"] == "success", (expr, reply)
        result: list[Json] = reply["data"]["result"]
        return result


def traffic(server: str, model: str) -> None:
    """Of every kind: whole and streamed, long and short, several choices, grammars, a reused prefix, bad requests."""
    prompt = "the quick brown fox jumps over the lazy dog; " * 8
    bodies = [
        {"prompt": prompt, "max_tokens": 40, "ignore_eos": True, "temperature": 0},
        {"prompt": prompt, "max_tokens": 40, "ignore_eos": True, "temperature": 0, "stream": True},
        {"prompt": "fox", "max_tokens": 20, "ignore_eos": True, "n": 3},
        {"prompt": "fox", "max_tokens": 30, "guided_choice": ["a long answer that is known", "a second one"]},
        {"prompt": "fox", "max_tokens": 0},
    ]
    with ThreadPoolExecutor(len(bodies)) as pool:
        list(pool.map(lambda body: read(f"{server}/v1/completions", {"model": model, **body}), bodies))


@pytest.fixture(scope="module")
def running(deploy: Path, tool: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    prometheus = tool("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    target = make_tiny_target(folder / "tiny", tokenizer=True)
    port, own_port = free_port(), free_port()
    config = yaml.safe_load((deploy / "prometheus/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(deploy / "prometheus" / pattern) for pattern in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{port}"]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    options = ["--target", str(target), "--port", str(port), "--price-per-hour", "2.5", "--max-num-seqs", "2"]
    commands = (
        [sys.executable, "-c", SERVE, "serve", *options, "--device", "cpu"],
        [
            prometheus,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{own_port}",
            "--log.level=warn",
        ],
    )
    running = Running(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{own_port}")
    logs = [folder / "server.log", folder / "prometheus.log"]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for command, log in zip(commands, logs, strict=True):
            with log.open("wb") as out:
                processes.append(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT))
        wait_for(lambda: b'"ok"' in read(f"{running.server}/ready"), processes[0], logs[0])
        model = json.loads(read(f"{running.server}/v1/models"))["data"][0]["id"]
        wait_for(lambda: b"Ready" in read(f"{running.prometheus}/-/ready"), processes[1], logs[1])

        def scraped() -> float:
            found = running.query("count_over_time(redraft_requests_running[5m])")
            return float(found[0]["value"][1]) if found else 0.0

        # once before the first scrape, so that there is something to rise from
        traffic(running.server, model)
        wait_for(lambda: scraped() >= 1, processes[1], logs[1])
        first = scraped()

        def enough() -> bool:
            traffic(running.server, model)
            return scraped() >= first + SCRAPES

        wait_for(enough, processes[1], logs[1])
        yield running
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in reversed(processes):
            try:
                process.wait(20)
            finally:
                process.kill()


def test_every_recording_rule_has_values(running: Running, rules: list[Json]) -> None:
    for rule in rules:
        if "record" in rule:
            assert numbers(running.query(rule["record"])), rule["record"]


def test_every_rule_is_evaluated(running: Running, rules: list[Json]) -> None:
    groups = json.loads(read(f"{running.prometheus}/api/v1/rules"))["data"]["groups"]
    seen = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"]: rule["health"] for rule in seen} == {
        rule.get("record") or rule["alert"]: "ok" for rule in rules
    }
    # nothing is wrong with this server, but that nobody promises that drafts pay for so small a target
    raised = {rule["name"] for rule in seen if rule["type"] == "alerting" and rule["state"] != "inactive"}
    assert raised <= {"RedraftSlowerThanPlain"}


@pytest.mark.parametrize("name", ["serving", "speculation"])
def test_every_panel_has_data(running: Running, dashboards: dict[str, Json], name: str) -> None:
    for panel in dashboards[name]["panels"]:
        for target in panel["targets"]:
            expr = target["expr"].replace("$__rate_interval", "1m").replace("$model", ".*").replace("$draft", ".*")
            assert numbers(running.query(expr)), (panel["title"], expr)


def test_variables_have_values(running: Running, dashboards: dict[str, Json]) -> None:
    labels = f"{running.prometheus}/api/v1/label/"
    for label, metric in (("model_name", "redraft_engine_up"), ("draft", "redraft_draft_info")):
        query = urllib.parse.urlencode({"match[]": metric})
        assert len(json.loads(read(f"{labels}{label}/values?{query}"))["data"]) == 1


def test_vllms_names_count_the_same(running: Running) -> None:
    for ours, theirs in (
        ("redraft_generation_tokens_total", "vllm:generation_tokens_total"),
        ("redraft_spec_accepted_tokens_total", "vllm:spec_decode_num_accepted_tokens_total"),
        ("redraft_time_to_first_token_seconds_count", "vllm:time_to_first_token_seconds_count"),
    ):
        values = {name: numbers(running.query(f"sum({name})")) for name in (ours, theirs)}
        assert values[ours] == values[theirs], values
        assert values[ours][0] > 0


def test_a_scrape_is_small_and_whole(running: Running) -> None:
    text = read(f"{running.server}/metrics")
    assert len(text) < 200_000
    families = list(text_string_to_metric_families(text.decode()))
    assert len({family.name for family in families}) == len(families)
    samples = [(s.name, tuple(sorted(s.labels.items()))) for family in families for s in family.samples]
    assert len(set(samples)) == len(samples)
    assert read(f"{running.server}/metrics").count(b"# TYPE vllm:") >= 30


def numbers(result: list[Json]) -> list[float]:
    """Values that are numbers."""
    values = [float(series["value"][1]) for series in result]
    return [value for value in values if value == value]
