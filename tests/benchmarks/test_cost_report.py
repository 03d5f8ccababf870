"""``bench cost``: from a load's JSON to its table, by the command itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from redraft.benchmarks.cli import app
from redraft.benchmarks.cost_training import training
from redraft.drafts.shipped import read_card
from redraft.server.engine.types import RedraftError

SHIPPED = Path(__file__).parents[2] / "drafts" / "checkpoints" / "smollm2-135m-instruct" / "dflash-sft"
LOAD: dict[str, Any] = {
    "benchmark": "load",
    "complete": True,
    "date": "2026-01-01T00:00:00+00:00",
    "command": "redraft bench load",
    "machine": {"cpu": "x", "cores": 2, "gpu": None},
    "engine": {"target": "tiny", "draft": "ngram-1", "target_sha": "0"},
    "levels": [
        {
            "concurrency": 1,
            "plain": {"tokens_per_second": 100.0, "watts": 36.0},
            "speculative": {"tokens_per_second": 200.0, "watts": 36.0},
        },
        {"rate": 2.5, "plain": {"tokens_per_second": 200.0}, "speculative": {"tokens_per_second": 160.0}},
        {"concurrency": 8, "plain": None, "speculative": {"tokens_per_second": 500.0}},
    ],
}
runner = CliRunner()


def ask(tmp_path: Path, report: Any, *options: str) -> tuple[dict[str, Any], str]:
    """The line of JSON and all that was printed."""
    path = tmp_path / "load.json"
    path.write_text(report if isinstance(report, str) else json.dumps(report))
    result = runner.invoke(app, ["cost", str(path), "--price-per-hour", "3.6", *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1]), result.stdout


def test_money_energy_and_break_even(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(json.dumps({"name": "mine", "training_seconds": 3000}))
    found, printed = ask(tmp_path, LOAD, "--draft", str(tmp_path), "--json", str(tmp_path / "cost.json"))
    assert json.loads((tmp_path / "cost.json").read_text()) == found
    one, two, three = found["levels"]
    assert one["plain"]["money_per_million_tokens"] == pytest.approx(10.0)
    assert one["speculative"]["money_per_million_tokens"] == pytest.approx(5.0)
    assert one["plain"]["kwh_per_million_tokens"] == pytest.approx(0.1)
    assert one["speculative"]["kwh_per_million_tokens"] == pytest.approx(0.05)
    assert one["saved"] == pytest.approx(0.5)
    # 3000 s at 3.6 an hour are 3, of which every million tokens bring back 5
    assert one["break_even_tokens"] == pytest.approx(600_000)
    assert one["break_even_hours"] == pytest.approx(600_000 / 200 / 3600)
    assert (two["rate"], two["pays"], two["break_even_tokens"]) == (2.5, False, None)
    assert two["plain"]["kwh_per_million_tokens"] is None
    assert three["plain"] is None
    assert three["speculative"]["money_per_million_tokens"] == pytest.approx(2.0)
    assert (three["saved"], three["pays"]) == (None, None)
    assert found["training"]["cost"] == pytest.approx(3.0)
    assert found["power"] == "measured and unknown"
    assert found["source"]["command"] == "redraft bench load"
    lines = printed.splitlines()
    assert lines[1].split() == ["1", "10", "5", "50.0", "%", "0.1", "0.05", "600,000", "(0.8", "h)"]
    assert lines[2].split()[-1] == "never"
    assert lines[3].split() == ["8", "-", "2", "-", "-", "-", "-"]
    assert "training: mine, 0.83 h at 3.6 USD = 3 USD" in printed
    assert "energy: unknown where there is none" in printed


def test_given_power_and_prices_count(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(json.dumps({"name": "mine", "training_seconds": 3600}))
    options = ("--watts", "72", "--currency", "EUR", "--training-price-per-hour", "7")
    found, printed = ask(tmp_path, LOAD, "--draft", str(tmp_path), *options)
    assert found["levels"][0]["plain"]["kwh_per_million_tokens"] == pytest.approx(0.2)
    assert found["levels"][1]["plain"]["kwh_per_million_tokens"] == pytest.approx(0.1)
    assert found["training"]["cost"] == pytest.approx(7.0)
    assert found["power"] == "given"
    assert "EUR/M tokens" in printed
    assert "energy: by power as given" in printed


def test_a_fleet_costs_as_much_as_its_replicas(tmp_path: Path) -> None:
    fleet = LOAD | {"benchmark": "simulate", "settings": {"replicas": 4}, "inputs": LOAD["engine"]}
    del fleet["engine"]
    found, printed = ask(tmp_path, fleet, "--watts", "9")
    assert found["levels"][0]["plain"]["money_per_million_tokens"] == pytest.approx(40.0)
    assert found["levels"][0]["plain"]["kwh_per_million_tokens"] == pytest.approx(0.1)
    assert "replica, of which there are 4" in printed


def test_the_last_of_several_reports_counts(tmp_path: Path) -> None:
    older = json.dumps(LOAD | {"date": "older"})
    found, _ = ask(tmp_path, f"{older}\n{json.dumps(LOAD)}\n\n")
    assert found["source"]["date"] == LOAD["date"]


def test_a_run_that_was_stopped_says_so(tmp_path: Path) -> None:
    assert "stopped before its end" in ask(tmp_path, LOAD | {"complete": False})[1]


def test_lookup_needs_no_training(tmp_path: Path) -> None:
    found, printed = ask(tmp_path, LOAD)
    assert found["training"] == {
        "draft": "ngram-1",
        "seconds": 0.0,
        "source": "needs no training",
        "price_per_hour": 3.6,
        "cost": 0.0,
    }
    assert found["levels"][0]["break_even_tokens"] == 0
    assert "training: ngram-1 (needs no training)" in printed


@pytest.mark.parametrize("ending", ["-ab12", "+ngram-ab12+1"])
def test_the_shipped_draft_is_known_by_its_name_and_target(ending: str) -> None:
    card = read_card(SHIPPED)
    facts = {"draft": card["name"] + ending, "target_sha": card["target_sha"]}
    both = card["training_seconds"] + card["before"]["training_seconds"]  # it went on from an earlier one
    assert training(None, facts).seconds == both
    others = [{"draft": "other" + ending}, {"draft": f"{card['name']}2{ending}"}, {"target_sha": "0"}]
    for other in (facts | changed for changed in others):
        assert training(None, other).seconds is None
    assert training(SHIPPED, {}).seconds == both
    assert training(None, {}).draft is None


def test_an_unknown_draft_s_training_is_not_guessed(tmp_path: Path) -> None:
    found, printed = ask(tmp_path, LOAD | {"engine": {"draft": "other-1", "target_sha": "0"}})
    assert found["training"]["cost"] is None
    assert found["levels"][0]["pays"] is None
    assert "training: unknown, no card of other-1 is at hand; give --draft FOLDER" in printed


@pytest.mark.parametrize("card", [None, "{}", '{"training_seconds": "long"}', '{"training_seconds": NaN}', "[]"])
def test_a_card_that_does_not_tell_is_refused(tmp_path: Path, card: str | None) -> None:
    if card is not None:
        (tmp_path / "card.json").write_text(card)
    with pytest.raises(RedraftError, match=r"card\.json"):
        training(tmp_path, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must hold"),
        ("{", "not JSON"),
        ("[]", "must hold"),
        (json.dumps(LOAD | {"benchmark": "speed"}), "must hold"),
        (json.dumps(LOAD | {"levels": []}), "no measured level"),
        (json.dumps(LOAD | {"levels": [3]}), "no measured level"),
        (json.dumps(LOAD | {"levels": [{"concurrency": 1, "plain": {}}]}), "no tokens_per_second"),
        (
            json.dumps(LOAD | {"levels": [{"concurrency": 1, "plain": {"tokens_per_second": 0}}]}),
            "no tokens_per_second",
        ),
        (json.dumps(LOAD | {"settings": {"replicas": 0}}), "replicas"),
    ],
)
def test_what_is_no_load_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "load.json"
    path.write_text(content)
    result = runner.invoke(app, ["cost", str(path), "--price-per-hour", "1"])
    assert isinstance(result.exception, RedraftError)
    assert message in str(result.exception)
    assert str(path) in str(result.exception)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    assert "cannot read" in str(runner.invoke(app, ["cost", str(tmp_path), "--price-per-hour", "1"]).exception)
    (tmp_path / "load.json").write_text(json.dumps(LOAD))
    arguments = ["cost", str(tmp_path / "load.json"), "--price-per-hour", "1", "--json", str(tmp_path)]
    assert "cannot write" in str(runner.invoke(app, arguments).exception)


@pytest.mark.parametrize("option", ["--price-per-hour", "--watts", "--training-price-per-hour"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "much"])
def test_prices_are_finite_and_above_zero(option: str, value: str) -> None:
    result = runner.invoke(app, ["cost", "load.json", "--price-per-hour", "1", option, value])
    assert result.exit_code == 2
    assert option in result.stderr


def test_there_is_no_price_by_default_and_a_currency_is_a_name() -> None:
    assert "--price-per-hour" in runner.invoke(app, ["cost", "load.json"]).stderr
    result = runner.invoke(app, ["cost", "load.json", "--price-per-hour", "1", "--currency", " "])
    assert "--currency" in str(result.exception)
