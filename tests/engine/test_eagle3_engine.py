"""An EAGLE-3 draft in the engine: the output is that of plain decoding, and what it keeps is that of one prefill.

A random draft is seldom right, so ``Knowing`` puts the true tokens among the children of every node: rounds then accept
deeply and off the spine, and both caches are compacted, while the draft's own passes go on over them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from redraft.drafts.base import Drafter, DraftState
from redraft.drafts.checkpoint import read_draft
from redraft.drafts.eagle3 import Eagle3Drafter
from redraft.drafts.merged import MergedDrafter
from redraft.drafts.ngram import NgramDrafter
from redraft.drafts.none import NoDrafter
from redraft.kernels.fused_cpu import load_fused
from redraft.server.engine.config import PAGE, EngineConfig
from redraft.server.engine.draft_choice import choose_draft
from redraft.server.engine.engine import Engine
from redraft.server.engine.load import build_engine
from redraft.server.engine.target.spec import read_spec
from redraft.server.engine.types import Request, SamplingParams

NODES, SLOTS, VOCAB = 10, 3, 512
CPU = torch.device("cpu")
PROMPTS = ([5, 9, 5, 9, 5, 9, 5], list(range(20, 137)), [7])
"""A loop, one that crosses a page while decoding, a single token, before which there is no feature."""
SAMPLING = {
    "greedy": SamplingParams(max_tokens=16, temperature=0),
    "T=0.8": SamplingParams(max_tokens=16, temperature=0.8, seed=-5),
    "filtered": SamplingParams(max_tokens=16, temperature=1.1, top_p=0.9, top_k=40, min_p=0.01, seed=2**64 - 1),
}
KINDS = ("chain", "tree", "merged", "knowing", "knowing+ngram")


class Knowing(Eagle3Drafter):
    """Drafts the true tokens, but not first; notes what it would have drafted by itself."""

    reference: Tensor
    """[S+1, T'] each slot's whole text."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.own: dict[tuple[int, ...], list[Tensor]] = {}
        """By the text so far: what this draft proposes, depth after depth behind the true text."""

    def _children(
        self, state: DraftState, slot: Tensor, root: Tensor, depth: int, logits: Tensor, sampled: bool
    ) -> tuple[Tensor, Tensor]:
        own = super()._children(state, slot, root, depth, logits, sampled)
        for number, (i, length) in enumerate(zip(slot.tolist(), (root + 1).tolist(), strict=True)):
            text = tuple(state.tokens[i, :length].tolist())
            if depth == 0:
                self.own[text] = []
            self.own[text] += [kept[number] for kept in own]
        true = self.reference[slot].gather(1, (root + depth + 1).unsqueeze(1)).unsqueeze(1).expand(*logits.shape[:2], 1)
        known = torch.cat(((true + 7) % VOCAB, true), 2)
        # at first a wrong token comes before the true one, so that accepted nodes have to move
        share = torch.tensor([0.5, 0.45] if depth == 0 else [0.05, 0.9])
        return known, share.log().expand(known.shape)


class Setting:
    """An engine over a tiny target, and drafters of every kind for it."""

    def __init__(self, target: Path, draft: Path, dtype: str) -> None:
        self.config = EngineConfig(
            target=str(target),
            target_name="tiny",
            target_sha="0",
            draft=str(draft),
            dtype=dtype,
            device="cpu",
            max_num_seqs=SLOTS,
            max_nodes=NODES,
            max_num_batched_tokens=64,
            measure_costs=False,
            self_check=False,
        )
        self.checkpoint = read_draft(draft)
        self.engine = build_engine(self.config)
        self.spec = read_spec(target)

    def drafter(self, kind: str, texts: Sequence[Sequence[int]] = ()) -> Drafter:
        """``texts``: the whole true text behind each slot, for those that know it."""
        positions, embedding = self.engine.state.positions, self.engine.target.weights.embedding
        if not kind.startswith("knowing"):
            config = replace(self.config, draft_branch=1 if kind == "chain" else None, draft_ngram=kind == "merged")
            return choose_draft(config, self.spec, CPU).make(embedding, lambda: torch.zeros(0), positions)
        knowing = Knowing(self.checkpoint, embedding, positions, NODES)
        knowing.reference = table([*texts, []])
        return knowing if kind == "knowing" else MergedDrafter(knowing, NgramDrafter(SLOTS, VOCAB, CPU, NODES))

    def decode(
        self, drafter: Drafter, prompts: Sequence[Sequence[int]], params: SamplingParams
    ) -> tuple[list[list[int]], list[int]]:
        """Outputs of ``prompts`` decoded together, and how many drafted tokens each round accepted."""
        engine, accepted = self.engine, []
        engine.drafter = drafter
        outputs: dict[str, list[int]] = {str(i): [] for i in range(len(prompts))}
        for i, prompt in enumerate(prompts):
            engine.submit(Request(str(i), tuple(prompt), params))
        while engine.busy:
            for output in engine.step().outputs:
                outputs[output.request_id] += output.tokens
                accepted.append(output.accepted)
        return list(outputs.values()), accepted

    def plain(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[list[int]]:
        return [self.decode(NoDrafter(), [prompt], params)[0][0] for prompt in prompts]


@pytest.fixture(scope="module", params=["llama-bf16", "qwen3-fp32", "llama-fp32-torch"])
def setting(
    request: pytest.FixtureRequest, tiny_target: Callable[[str], Path], random_draft: Callable[..., Path]
) -> Iterator[Setting]:
    family, dtype, *without = request.param.split("-")
    target = tiny_target(family)
    # a draft that takes part in few tokens; fewer heads than the target's, so that a feature takes three layers
    changes = {"kept": range(0, VOCAB, 2)} if family == "qwen3" else {"heads": 2, "kv_heads": 1, "steps": 7}
    with pytest.MonkeyPatch.context() as patch:
        if without:
            patch.setattr("redraft.kernels.attention.load_fused", lambda: None)
            patch.setattr("redraft.kernels.layer_ops.load_fused", lambda: None)
        elif load_fused() is None:
            pytest.skip("no C compiler here, so there are no fused kernels")
        made = Setting(target, random_draft(target, kind="eagle3", **changes), dtype)
        yield made


def table(texts: Sequence[Sequence[int]]) -> Tensor:
    """[S+1, T'] texts, and what lies behind them."""
    width = max(map(len, texts)) + NODES
    return torch.tensor([[*text, *[0] * (width - len(text))] for text in texts])


def whole(texts: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]) -> list[list[int]]:
    return [[*text, *output] for text, output in zip(texts, outputs, strict=True)]


@pytest.mark.parametrize("params", SAMPLING.values(), ids=SAMPLING)
def test_output_is_that_of_plain_decoding(setting: Setting, params: SamplingParams) -> None:
    expected = setting.plain(PROMPTS, params)
    for kind in KINDS:
        drafter = setting.drafter(kind, whole(PROMPTS, expected))
        outputs, accepted = setting.decode(drafter, PROMPTS, params)
        assert outputs == expected, kind
        if kind.startswith("knowing"):
            assert max(accepted) >= 4, kind


def test_the_engine_was_built_with_the_draft(setting: Setting) -> None:
    info, built = setting.engine.info, setting.drafter("merged")
    assert info.draft == f"random+ngram-{built.version}"
    assert info.max_nodes == NODES
    config = setting.checkpoint.config
    assert setting.engine.scheduler.tree_rows - setting.engine.state.forced.shape[1] == max(
        2 * NODES + 1, built.context.reach
    )
    kv = setting.engine.state.draft_kv
    assert kv.shape[3:] == (config.kv_heads, 16)
    assert (kv.shape[0] - 1) * 2 * config.kv_width >= config.hidden > (kv.shape[0] - 2) * 2 * config.kv_width


@pytest.mark.parametrize(("kind", "temperature"), [("tree", 0.8), ("knowing", 0.0), ("knowing+ngram", 0.8)])
def test_both_caches_are_those_of_one_prefill(
    setting: Setting, kind: str, temperature: float, keep_caches: Callable[[Engine], list[tuple[Tensor, Tensor]]]
) -> None:
    params = SamplingParams(max_tokens=20, temperature=temperature, seed=3)
    prompt = PROMPTS[1]
    kept = keep_caches(setting.engine)
    (expected,) = setting.plain([prompt], params)
    drafter = setting.drafter(kind, [[*prompt, *expected]] * SLOTS)
    setting.decode(drafter, [prompt], params)
    setting.decode(drafter, [[*prompt, *expected]], SamplingParams(max_tokens=1, temperature=0))
    plain, speculative, prefilled = kept
    # the newest token is an anchor still
    committed = len(prompt) + len(expected) - 1
    assert committed > PAGE
    for target, draft in (speculative, prefilled):
        assert draft[:, :, :committed].abs().amax((0, 1, 3, 4)).min() > 0
        assert torch.equal(target[:, :, :committed], plain[0][:, :, :committed])
    assert not plain[1].any(), "without the draft nothing is kept for it"
    assert torch.equal(speculative[1][:, :, :committed], prefilled[1][:, :, :committed])


@pytest.mark.parametrize(("kind", "temperature"), [("knowing", 0.8), ("knowing+ngram", 0.0)])
def test_after_many_rounds_the_draft_says_what_it_says_after_a_prefill(
    setting: Setting, kind: str, temperature: float
) -> None:
    """Absorbing, compaction and page tables: a rejected row that lived on would be heard here."""
    params = SamplingParams(max_tokens=30, temperature=temperature, seed=11)
    prompts = [*PROMPTS[:2], [8, 8, 8]]
    expected = setting.plain(prompts, params)
    drafter = setting.drafter(kind, whole(prompts, expected))
    knowing = drafter.first if isinstance(drafter, MergedDrafter) else drafter
    assert isinstance(knowing, Knowing)
    outputs, accepted = setting.decode(drafter, prompts, params)
    assert outputs == expected
    assert max(accepted) >= 4
    texts = whole(prompts, expected)
    later = [(t, text) for t in knowing.own for text in texts if len(t) > len(text) - 25 and [*t] == text[: len(t)]]
    assert len(later) >= 6
    seen, knowing.own = knowing.own, {}
    scheduler = setting.engine.scheduler
    chosen = [*later[:: len(later) // 6], max(later, key=lambda pair: len(pair[0]))]
    assert max(len(text) for text, _ in chosen) > PAGE
    for reuse in (True, False):
        before = scheduler.reused_tokens
        for text, true in chosen:
            if not reuse:
                scheduler.pool.forget()
            knowing.reference = table([true] * (SLOTS + 1))
            setting.decode(drafter, [text], replace(params, max_tokens=1))
            assert len(seen[text]) == len(knowing.own[text]) == 2 * knowing.steps
            for now, then in zip(knowing.own[text], seen[text], strict=True):
                # other numbers of rows, other bits
                close = 0.05 if setting.config.dtype == "bf16" else 1e-4
                if now.is_floating_point():
                    torch.testing.assert_close(now, then, rtol=close, atol=close)
                else:
                    assert close > 1e-3 or torch.equal(now, then)
        # a prefix that was reused drafts as well as a computed one
        assert (scheduler.reused_tokens > before) == reuse


def test_what_another_left_in_a_page_is_never_seen(setting: Setting) -> None:
    """The tree may reach into a page of its own."""
    engine, prompts = setting.engine, [list(range(120)), [4] * 126]
    for kind, limit in (("tree", 7), ("chain", 12), ("merged", 4)):
        params = SamplingParams(max_tokens=limit, temperature=0)
        expected = setting.plain(prompts, params)
        drafter = setting.drafter(kind)
        engine.scheduler.pool.forget()
        for kv in (engine.state.kv, engine.state.draft_kv):
            kv[:, :, PAGE:] = torch.nan
        engine.state._written.update(range(1, engine.scheduler.pool.total + 1))
        assert setting.decode(drafter, prompts, params)[0] == expected, kind
        used = torch.cat([torch.arange(page * PAGE, (page + 1) * PAGE) for page in range(1, 5)])
        for kv in (engine.state.kv, engine.state.draft_kv):
            assert not kv[:, :, used].isnan().any(), kind


def test_rows_that_do_not_suffice_change_nothing(setting: Setting) -> None:
    params = SAMPLING["T=0.8"]
    expected = setting.plain(PROMPTS, params)
    before = setting.engine.pacer.most_rows
    try:
        for rows in (1, 5, 9):
            setting.engine.pacer.most_rows = rows
            for kind in ("tree", "knowing+ngram"):
                drafter = setting.drafter(kind, whole(PROMPTS, expected))
                assert setting.decode(drafter, PROMPTS, params)[0] == expected, (rows, kind)
    finally:
        setting.engine.pacer.most_rows = before
