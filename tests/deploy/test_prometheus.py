"""A real Prometheus scrapes ``redraft serve`` under real traffic; every rule, alert and panel is asked of it."""

from __future__ import annotations

import json
import subprocess
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

from redraft.benchmarks.soak_process import ServedProcess
from redraft.benchmarks.tiny import make_tiny_target

Json = dict[str, Any]
SCRAPES = 4
"""Scrapes, one a second, after which rates are known of whatever happened between the first and the last."""


def read(url: str, body: Json | None = None) -> bytes:
    """What is answered, whatever the status."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return bytes(reply.read())
    except urllib.error.HTTPError as error:
        return bytes(error.read())


@dataclass(frozen=True)
class Running:
    server: str
    prometheus: str
    process: subprocess.Popen[bytes]
    """Prometheus's."""
    log: Path

    def until(self, check: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                if check():
                    return
            except urllib.error.URLError:
                pass
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

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
def server(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    target = make_tiny_target(folder / "tiny", tokenizer=True)
    options = ["--target", str(target), "--price-per-hour", "2.5", "--max-num-seqs", "2", "--device", "cpu"]
    with ServedProcess(options, folder / "log", environment) as process:
        yield process.url


@pytest.fixture(scope="module")
def running(
    server: str,
    deploy: Path,
    tool: Callable[[str], str],
    free_port: Callable[[], int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((deploy / "prometheus/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(deploy / "prometheus" / pattern) for pattern in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [server.removeprefix("http://")]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        tool("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=warn",
    ]
    model = json.loads(read(f"{server}/v1/models"))["data"][0]["id"]
    with (folder / "log").open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    running = Running(server, f"http://{address}", process, folder / "log")
    try:
        running.until(lambda: b"Ready" in read(f"{running.prometheus}/-/ready"))

        def scraped() -> float:
            found = running.query("count_over_time(redraft_requests_running[5m])")
            return float(found[0]["value"][1]) if found else 0.0

        # once before the first scrape, so that there is something to rise from
        traffic(server, model)
        running.until(lambda: scraped() >= 1)
        first = scraped()

        def enough() -> bool:
            traffic(server, model)
            return scraped() >= first + SCRAPES

        running.until(enough)
        yield running
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()


def test_every_recording_rule_has_values(running: Running, rules: list[Json]) -> None:
    for rule in rules:
        if "record" in rule:
            assert numbers(running.query(rule["record"])), rule["record"]


def evaluated(running: Running) -> list[Json]:
    """Rules as Prometheus has them."""
    groups = json.loads(read(f"{running.prometheus}/api/v1/rules"))["data"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_every_rule_is_evaluated(running: Running, rules: list[Json]) -> None:
    assert {rule["name"]: rule["health"] for rule in evaluated(running)} == {
        rule.get("record") or rule["alert"]: "ok" for rule in rules
    }


def test_no_alert_is_raised_once_it_is_calm(running: Running) -> None:
    """Traffic itself may fill the queue, or delay a scrape, and both would be over with it."""

    def raised() -> set[str]:
        alerts = [rule for rule in evaluated(running) if rule["type"] == "alerting"]
        assert alerts
        return {rule["name"] for rule in alerts if rule["state"] != "inactive"}

    # nobody promises that drafts pay for so small a target
    running.until(lambda: raised() <= {"RedraftSlowerThanPlain"}, seconds=20)


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
