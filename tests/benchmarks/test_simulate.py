"""``bench simulate`` as a whole: its options, its table and its line of JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from redraft.benchmarks.cli import app
from redraft.benchmarks.load_plan import Level
from redraft.benchmarks.simulate import Inputs, Study, notes, read_chances, read_costs, setup_for
from redraft.benchmarks.simulate_lengths import Lengths
from redraft.benchmarks.simulate_levels import plain
from redraft.benchmarks.simulate_record import median_table
from redraft.benchmarks.simulate_replica import Setup
from redraft.benchmarks.simulate_script import jobs
from redraft.server.engine.costs import CostTable
from redraft.server.engine.types import RedraftError

TABLE = CostTable((2, 8, 64, 128), (0.01, 0.012, 0.05, 0.1), 1e-6, 1e-6, (1, 8), (0.001, 0.004), 0.001)
runner = CliRunner()


@pytest.fixture
def costs(tmp_path: Path) -> Path:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(asdict(TABLE)))
    return path


def simulated(*arguments: object) -> tuple[dict[str, Any], str]:
    """The line of JSON and all that was printed."""
    result = runner.invoke(app, ["simulate", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1]), result.stdout


def refused(*arguments: object) -> str:
    result = runner.invoke(app, ["simulate", *map(str, arguments)])
    assert isinstance(result.exception, RedraftError), result.output
    return str(result.exception)


def test_levels_of_users(costs: Path, tmp_path: Path) -> None:
    arguments = ("--costs", costs, "--rates", "0.8,0.5", "--concurrency", "1,4", "--output-tokens", 20)
    found, printed = simulated(*arguments, "--json", tmp_path / "simulated.json")
    assert json.loads((tmp_path / "simulated.json").read_text()) == found
    assert found["benchmark"] == "simulate"
    assert [level["concurrency"] for level in found["levels"]] == [1, 4]
    for level in found["levels"]:
        assert level["requests"] == 3 * level["concurrency"]
        for side in ("plain", "speculative"):
            one = level[side]
            assert one["tokens"] == 20 * level["requests"]
            assert one["tokens_per_second"] == pytest.approx(one["tokens"] / one["seconds"])
            assert one["steps"] == one["rounds"] + one["prefill_steps"]
            assert one["busy_share"] == pytest.approx(1.0)
            assert one["ttft_p50"] > 0
            assert one["nodes_per_round"] == pytest.approx(one["nodes_per_step"] / one["requests_per_round"])
        assert level["plain"]["tau"] == 1.0
        assert 1.5 < level["speculative"]["tau"] <= 2.3 + 0.2
        assert level["speedup"] > 1
    assert found["settings"]["slots"] == 4
    assert found["settings"]["most_rows"] == 128
    rows = [line.split() for line in printed.splitlines()[:5]]
    assert [row[:2] for row in rows[1:]] == [["1", "plain"], ["1", "speculative"], ["4", "plain"], ["4", "speculative"]]
    assert [row[-1] for row in (rows[2], rows[4])] == [f"{level['speedup']:.2f}" for level in found["levels"]]


def test_the_same_seed_gives_the_same_figures(costs: Path) -> None:
    arguments = ("--costs", costs, "--rates", "0.7,0.4", "--rate", "20", "--requests", 30, "--replicas", 2)
    lengths = ("--prompt-tokens", "lognormal:30:0.5", "--output-tokens", "lognormal:20:0.5", "--max-num-seqs", 4)
    one, two, other = (simulated(*arguments, *lengths, "--seed", seed)[0]["levels"] for seed in (1, 1, 2))
    assert one == two
    assert one != other
    assert one[0]["rate"] == 20
    assert one[0]["speedup"] is None


def test_a_fleet_that_is_never_idle_is_busy_all_the_time(costs: Path) -> None:
    arguments = ("--costs", costs, "--rates", "0.7,0.4", "--concurrency", 8, "--output-tokens", 50, "--requests", 80)
    found, _ = simulated(*arguments, "--replicas", 2, "--router", "least-loaded")
    assert 0.9 < found["levels"][0]["plain"]["busy_share"] <= 1
    assert found["settings"]["slots"] == 4


def test_plain_decoding_needs_no_room_for_trees() -> None:
    setup = plain(Setup(slots=2, pages=9, max_model_len=99, tree_rows=6, most_rows=40, most_nodes=5))
    assert (setup.most_nodes, setup.tree_rows, setup.speculation) == (0, 1, "off")


def test_a_simulation_s_json_is_a_table_of_costs(costs: Path, tmp_path: Path) -> None:
    path = tmp_path / "simulated.json"
    simulated("--costs", costs, "--rates", "0.5", "--concurrency", 1, "--output-tokens", 2, "--json", path)
    assert read_costs(path) == read_costs(costs) == TABLE


def test_from_a_model_to_a_validated_study(tiny_target: Path, tmp_path: Path, prompt_file: Path) -> None:
    trace, again = tmp_path / "trace.jsonl", tmp_path / "simulated.json"
    engine = ("--target", tiny_target, "--draft", "ngram", "--dtype", "fp32", "--device", "cpu", "--limit", 2)
    asked = ("--prompts", prompt_file, "--max-tokens", 6, "--concurrency", 2, "--record", trace, "--json", again)
    found, printed = simulated(*engine, *asked, "--validate", "--max-model-len", 300)
    assert [(row["concurrency"], row["side"]) for row in found["validation"]] == [(2, "plain"), (2, "speculative")]
    for row in found["validation"]:
        assert row["real"]["tokens"] == row["simulated"]["tokens"]
        assert row["parts"]["rounds"] == sum(kind["count"] for kind in row["parts"]["kinds"])
    assert printed.splitlines()[0].startswith("users")
    assert found["inputs"]["draft"] == "ngram-1"
    assert found["levels"][0]["requests"] == 6
    later, _ = simulated("--costs", again, "--trace", trace, "--concurrency", 2, "--max-model-len", 300)
    assert later["levels"] == found["levels"], "what was recorded stands for the model"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give one of them"),
        (("--rates", "0.5", "--trace", "x"), "leave out --rates"),
        (("--rates", "0.5", "--limit", 3), "--limit needs --prompts"),
        (("--rates", "0.5", "--record", "x"), "--record needs --prompts"),
        (("--rates", "0.5", "--validate"), "--validate needs --prompts"),
        (("--prompts", "x", "--validate", "--rate", 1), "--validate"),
        (("--rates", "0.5", "--rate", 1, "--concurrency", 1), "give one of them"),
        (("--rates", "0.5", "--router", "random"), "--router"),
        (("--rates", "0.5", "--concurrency", "0"), "--concurrency"),
        (("--rates", "0.5", "--rate", "nan"), "--rate"),
        (("--trace", "/no/such/file"), "/no/such/file"),
    ],
)
def test_what_would_be_ignored_or_is_missing_is_refused(
    costs: Path, arguments: tuple[object, ...], message: str
) -> None:
    measured = () if "--prompts" in arguments else ("--costs", costs)
    assert message in refused(*measured, *arguments)


def test_what_is_measured_already_needs_no_engine(costs: Path) -> None:
    assert "--target says what to measure" in refused("--costs", costs, "--rates", "0.5", "--target", "x")


@pytest.mark.parametrize("text", ["", "x", "0.5,0.6", "1.1", "-0.1", "nan", "0.5,nan", ",".join(["0"] * 64)])
def test_rates_that_are_none(text: str) -> None:
    with pytest.raises(RedraftError, match="--rates"):
        read_chances(text)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rows": [1], "passes": []}', '{"costs": 3}', "null"])
def test_costs_that_are_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "costs.json").write_text(content)
    with pytest.raises(RedraftError, match=r"costs\.json"):
        read_costs(tmp_path / "costs.json")


def test_a_place_that_cannot_be_written_is_found_before_the_work(costs: Path, tmp_path: Path) -> None:
    assert "cannot write" in refused("--costs", costs, "--rates", "0.5", "--json", tmp_path)


def test_sizes_follow_from_the_requests() -> None:
    chances = read_chances("0.5,0.4,0.3")
    study = Study((Level(10, concurrency=30), Level(10, concurrency=7)), Lengths(100), Lengths(50), replicas=3)
    inputs, asked = Inputs(TABLE, chances, {}), jobs(10, chances, Lengths(100), Lengths(50), 0)
    setup = setup_for(study, inputs, asked)
    assert (setup.slots, setup.max_model_len, setup.tree_rows, setup.most_nodes) == (10, 150, 4, 3)
    assert setup.pages == 10 * 2
    assert setup.most_rows == 128
    open_loop = Study((Level(10, rate=1.0),), max_nodes=2, max_num_batched_tokens=40, pages=9, max_model_len=99)
    setup = setup_for(open_loop, inputs, asked)
    assert (setup.slots, setup.most_nodes, setup.most_rows, setup.pages, setup.max_model_len) == (8, 2, 40, 9, 99)
    with pytest.raises(RedraftError, match="at least 16"):
        setup_for(Study((Level(10, rate=1.0),), max_num_batched_tokens=15), inputs, asked)


def test_a_policy_that_takes_long_is_mentioned() -> None:
    side = {"seconds": 10.0, "busy_share": 0.5, "steps": 1000}  # 10 ms a step of two replicas
    row = {"concurrency": 4, "plain": side, "speculative": side}
    (note,) = notes(row, {"plain": 0.0004, "speculative": 0.002}, replicas=2)
    assert note.startswith("concurrency 4, speculative: scheduler and pacer took 2.00 ms")


def test_the_median_of_tables() -> None:
    def table(*passes: float, round: float) -> CostTable:
        return CostTable((2, 8, 16)[: len(passes)], passes, round, 2 * round, (1,), (passes[0],), round)

    found = median_table([table(1.0, 2.0, 3.0, round=5.0), table(3.0, 9.0, round=1.0), table(2.0, 4.0, round=2.0)])
    assert found == CostTable((2, 8), (2.0, 4.0), 2.0, 4.0, (1,), (2.0,), 2.0)
