"""The draft that comes with the package: it fits its target, is its default, changes no token and is worth its cost."""

from pathlib import Path

import pytest

from redraft.drafts.base import Drafter
from redraft.drafts.dflash import DFlashDrafter
from redraft.drafts.merged import MergedDrafter
from redraft.drafts.none import NoDrafter
from redraft.drafts.shipped import read_card, shipped
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.draft_resolve import resolve_draft
from redraft.server.engine.engine import Engine
from redraft.server.engine.load import build_engine
from redraft.server.engine.target.digest import weights_digest
from redraft.server.engine.target.resolve import ResolvedTarget
from redraft.server.engine.types import Request, SamplingParams

TOKENS = 48
TEXTS = (
    "<|im_start|>user\nTom has 3 boxes with 12 pencils each. He gives away 7 pencils. How many are left?<|im_end|>\n"
    "<|im_start|>assistant\n",
    "<|im_start|>user\nWrite a Python function that adds up the even numbers of a list.<|im_end|>\n"
    "<|im_start|>assistant\n",
)


@pytest.fixture(scope="module")
def sha(smollm2: Path) -> str:
    return weights_digest(smollm2)


@pytest.fixture(scope="module")
def engine(smollm2: Path, sha: str) -> Engine:
    return build_engine(
        EngineConfig(str(smollm2), "smollm2-135m", sha, max_model_len=512, max_num_seqs=2, measure_costs=False)
    )


def decode(engine: Engine, drafter: Drafter, params: SamplingParams, smollm2: Path) -> tuple[list[list[int]], int]:
    """Answers to both texts, decoded together, and the number of rounds."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    own, engine.drafter, outputs, rounds = engine.drafter, drafter, [[] for _ in TEXTS], 0  # type: ignore[var-annotated]
    try:
        for number, text in enumerate(TEXTS):
            engine.submit(Request(str(number), tuple(tokenizer.encode(text).ids), params))
        while engine.busy:
            for output in engine.step().outputs:
                outputs[int(output.request_id)] += output.tokens
                rounds += 1
    finally:
        engine.drafter = own
    return outputs, rounds


def test_it_is_the_default_of_its_target(engine: Engine) -> None:
    assert engine.info.draft.startswith("smollm2-135m-dflash-sft+ngram-")
    assert any("the shipped draft for these weights" in note for note in engine.info.notes)
    assert isinstance(engine.drafter, MergedDrafter)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_it_changes_no_token(engine: Engine, smollm2: Path, temperature: float) -> None:
    params = SamplingParams(max_tokens=TOKENS, temperature=temperature, seed=7)
    expected, plain_rounds = decode(engine, NoDrafter(), params, smollm2)
    merged = engine.drafter
    assert isinstance(merged, MergedDrafter)
    tree = merged.first
    assert isinstance(tree, DFlashDrafter)
    rounds = {}
    for name, drafter in {"chain": tree.as_chain(), "tree": tree, "merged": merged}.items():
        outputs, rounds[name] = decode(engine, drafter, params, smollm2)
        assert outputs == expected, name
    assert plain_rounds == sum(map(len, expected))
    assert rounds["merged"] <= rounds["chain"] < plain_rounds / 1.3


@pytest.mark.parametrize("name", ["dflash-sft", "draft-opd", "eagle3"])
def test_the_card_says_what_was_done(sha: str, name: str) -> None:
    folder = shipped(sha)[name]
    card = read_card(folder)
    assert card.keys() >= {
        "name",
        "architecture",
        "data",
        "steps",
        "labels",
        "command",
        "target_sha",
        "acceptance",
        "curve",
    }
    for figures in card["acceptance"]["sets"].values():
        assert figures["tree + n-gram"] > max(figures["n-gram"], figures["chain"])
    assert sum(path.stat().st_size for path in folder.iterdir()) < 32_000_000


def test_all_of_them_are_small_and_the_default_is_the_first(sha: str) -> None:
    folders = shipped(sha)
    assert [name for name, folder in folders.items() if read_card(folder).get("default")] == [next(iter(folders))]
    assert sum(path.stat().st_size for folder in folders.values() for path in folder.iterdir()) < 80_000_000


@pytest.mark.parametrize("name", ["draft-opd", "eagle3"])
def test_the_others_serve_by_name_and_change_no_token(smollm2: Path, sha: str, name: str) -> None:
    target = ResolvedTarget(smollm2, "smollm2-135m", sha)
    found = resolve_draft(name, target)
    assert found.why == "shipped for these weights, as asked"
    engine = build_engine(
        EngineConfig(
            str(smollm2), "smollm2-135m", sha, found.draft, max_model_len=512, max_num_seqs=2, measure_costs=False
        )
    )
    params = SamplingParams(max_tokens=TOKENS, temperature=0.0)
    expected, plain_rounds = decode(engine, NoDrafter(), params, smollm2)
    outputs, rounds = decode(engine, engine.drafter, params, smollm2)
    assert outputs == expected
    assert rounds < plain_rounds / 1.3
