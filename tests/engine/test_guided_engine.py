"""Grammars in the engine: output follows them, does not depend on the draft, and what is forced is drafted."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from llguidance import LLMatcher
from tokenizers import Tokenizer

from redraft.benchmarks.tiny import VOCAB, make_tiny_target
from redraft.drafts.base import Drafter
from redraft.drafts.none import NoDrafter
from redraft.server.engine import guiding
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.engine import Engine
from redraft.server.engine.grammar import Matcher
from redraft.server.engine.load import build_engine
from redraft.server.engine.types import FinishReason, RedraftError, Request, RoundOutput, SamplingParams

ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 6, "pattern": "^[a-z]*$"},
        "kind": {"enum": ["first", "second"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["title", "kind", "count"],
    "additionalProperties": False,
}
JSON = LLMatcher.grammar_from_json_schema(json.dumps(SCHEMA), overrides=ONE_LINE)
REGEX = r"(ab|ba){3,12}"
PROMPTS = [tuple(range(5, 21)), (7, 8, 9) * 5, tuple(range(40, 75))]
HOT, COLD = SamplingParams(96, temperature=0.9, seed=5), SamplingParams(96, temperature=0.0)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    folder = make_tiny_target(tmp_path_factory.mktemp("tiny"), tokenizer=True)
    return EngineConfig(
        str(folder), "tiny", "", "ngram", device="cpu", dtype="fp32", self_check=False, measure_costs=False
    )


@pytest.fixture
def engine(config: EngineConfig) -> Engine:
    return build_engine(config)


@pytest.fixture(scope="module")
def tokenizer(config: EngineConfig) -> Tokenizer:
    return Tokenizer.from_file(str(Path(config.target) / "tokenizer.json"))


def requests() -> list[Request]:
    """Guided and free ones, greedy and sampled."""
    asked = []
    for number, prompt in enumerate(PROMPTS):
        for name, grammar in (("json", JSON), ("regex", LLMatcher.grammar_from_regex(REGEX)), ("free", None)):
            for params in (HOT, COLD):
                heat = "hot" if params is HOT else "cold"
                asked.append(Request(f"{name}-{heat}-{number}", prompt, params, grammar=grammar))
    return asked


def run(engine: Engine, asked: Sequence[Request], drafter: Drafter | None = None) -> dict[str, list[RoundOutput]]:
    if drafter is not None:
        engine.drafter = drafter
    made: dict[str, list[RoundOutput]] = {request.request_id: [] for request in asked}
    for request in asked:
        engine.submit(request)
    while engine.busy:
        for output in engine.step().outputs:
            made[output.request_id].append(output)
    assert engine.scheduler.pool.used == 0
    return made


def tokens(outputs: Sequence[RoundOutput]) -> tuple[list[int], FinishReason | None]:
    return [token for output in outputs for token in output.tokens], outputs[-1].finish_reason


def test_output_follows_the_grammar_whatever_the_draft(engine: Engine, config: EngineConfig, tokenizer) -> None:
    ngram, asked = engine.drafter, requests()
    plain = {request.request_id: tokens(run(engine, [request], NoDrafter())[request.request_id]) for request in asked}
    for name, (made, finish) in plain.items():
        text = tokenizer.decode(made)
        if name.startswith("json"):
            assert finish is FinishReason.STOP
            found = json.loads(text)
            assert set(found) == set(SCHEMA["properties"])
            assert found["kind"] in ("first", "second")
            assert 0 <= found["count"] <= 99
            assert text == json.dumps(found)
        elif name.startswith("regex"):
            assert finish is FinishReason.STOP
            assert re.fullmatch(REGEX, text)
    together = run(engine, asked, ngram)
    assert {name: tokens(outputs) for name, outputs in together.items()} == plain
    # read one round behind where no grammar is at work
    engine.lag = 1
    assert {name: tokens(outputs) for name, outputs in run(engine, asked).items()} == plain
    few = build_engine(replace(config, kv_pages=4, max_num_seqs=3))
    assert {name: tokens(outputs) for name, outputs in run(few, asked).items()} == plain


@pytest.mark.usefixtures("unhurried")
def test_what_is_forced_is_drafted_and_accepted(engine: Engine) -> None:
    (outputs,) = run(engine, [Request("r", PROMPTS[0], HOT, grammar=JSON)]).values()
    accepted, made = sum(output.accepted for output in outputs), len(tokens(outputs)[0])
    # '{"title": "', '", "kind": "' and '", "count": ' leave no choice
    assert accepted > made / 2
    assert max(output.accepted for output in outputs) >= 8
    (outputs,) = run(engine, [Request("r", PROMPTS[0], HOT, grammar=JSON, max_nodes=0)]).values()
    assert sum(output.drafted for output in outputs) == 0
    (outputs,) = run(engine, [Request("r", PROMPTS[0], HOT, grammar=JSON, max_nodes=3)]).values()
    assert max(output.drafted for output in outputs) == 3


def test_a_grammar_that_cannot_go_on_ends_its_request_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    free = Request("free", PROMPTS[1], COLD)
    wanted = tokens(run(engine, [free])["free"])
    masks, calls = Matcher.masks, [0]

    def break_down(self: Matcher, *arguments: object) -> object:
        calls[0] += 1
        if calls[0] > 2:
            raise RedraftError("the grammar cannot go on: too complex")
        return masks(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(guiding.Matcher, "masks", break_down)
    made = run(engine, [Request("guided", PROMPTS[0], HOT, grammar=JSON), free])
    assert made["guided"][-1].finish_reason is FinishReason.ERROR
    assert made["guided"][-1].error == "the grammar cannot go on: too complex"
    assert tokens(made["free"]) == wanted


def test_a_broken_grammar_is_refused_at_once(engine: Engine) -> None:
    with pytest.raises(RedraftError, match="the grammar cannot be used"):
        engine.submit(Request("r", PROMPTS[0], HOT, grammar="start: /([/"))
    assert not engine.busy


def test_cut_by_length(engine: Engine, tokenizer: Tokenizer) -> None:
    params = replace(COLD, max_tokens=5)
    (outputs,) = run(engine, [Request("r", PROMPTS[0], params, grammar=JSON)]).values()
    made, finish = tokens(outputs)
    assert (len(made), finish) == (5, FinishReason.LENGTH)
    assert '{"title": "'.startswith(tokenizer.decode(made))
    assert VOCAB - 1 not in made
