"""The logits stage against a literal re-derivation, token by token, and the whole order up to the token drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from redraft.kernels.accept import Committed, accept_twin
from redraft.kernels.adjust import (
    PRODUCED,
    Bias,
    MinTokens,
    Penalties,
    adjust,
    adjust_kernel,
    adjust_twin,
    count_committed,
)
from redraft.kernels.pack_tree import pack_tree_twin
from redraft.kernels.rows import Rows
from redraft.kernels.sample import SamplingTable, sample

INF = float("inf")
PLACES = 4
"""Places of the bias table here."""


@dataclass
class Case:
    """What is asked in each slot, as a host would write it, and a round's rows."""

    logits: Tensor
    rows: Rows
    prompt: list[list[int]]
    produced: list[list[int]]
    penalties: list[tuple[float, float, float]]
    """Presence, frequency, repetition."""
    bias: list[dict[int, float]]
    until: list[int]
    ends: list[list[int]]
    allowed: list[set[int]]
    """By row."""

    def tables(self) -> dict[str, Any]:
        """The op's arguments, by name."""
        V = self.logits.shape[1]
        count = torch.zeros(len(self.prompt), V, dtype=torch.int32)
        for slot, (prompt, produced) in enumerate(zip(self.prompt, self.produced, strict=True)):
            for token in produced:
                count[slot, token] += PRODUCED
            count[slot, torch.tensor(sorted(set(prompt)), dtype=torch.int64)] += 1
        presence, frequency, repetition = torch.tensor(self.penalties).T.contiguous()
        pairs = [list(bias.items()) or [(0, 0.0)] for bias in self.bias]
        pairs = [pair + pair[:1] * (PLACES - len(pair)) for pair in pairs]
        bits = np.zeros((len(self.allowed), -(-V // 32) * 32), dtype=np.uint32)
        for row, tokens in enumerate(self.allowed):
            bits[row, sorted(tokens)] = 1
        words = (bits.reshape(len(bits), -1, 32) << np.arange(32, dtype=np.uint32)).sum(2).astype(np.uint32)
        return {
            "penalties": Penalties(presence, frequency, repetition, count),
            "bias": Bias(
                torch.tensor([[token for token, _ in pair] for pair in pairs]),
                torch.tensor([[value for _, value in pair] for pair in pairs], dtype=torch.float32),
            ),
            "minimum": MinTokens(torch.tensor(self.until), torch.tensor([[*e, -1, -1][:2] for e in self.ends])),
            "allowed": torch.from_numpy(words.view(np.int32)),
        }

    def literal(self, row: int) -> Any:
        """A row's logits as the definitions have it, in the roundings of fp32."""
        slot, node, path = int(self.rows.slot[row]), row, list[int]()
        while self.rows.depth[node] > 0:
            path.append(int(self.rows.token[node]))
            node = int(self.rows.parent[node])
        produced = self.produced[slot] + path
        presence, frequency, repetition = map(np.float32, self.penalties[slot])
        out = self.logits[row].float().numpy().copy()
        for token in range(len(out)):
            x, times = out[token], produced.count(token)
            if times or token in self.prompt[slot]:
                x = x / repetition if x > 0 else x * repetition
            x = x - frequency * np.float32(times)
            x = x - presence * np.float32(times > 0)
            if token in self.bias[slot]:
                x = x + np.float32(self.bias[slot][token])
            if token in self.ends[slot] and int(self.rows.position[row]) + 1 < self.until[slot]:
                x = np.float32(-INF)
            if token not in self.allowed[row]:
                x = np.float32(-INF)
            out[token] = x
        return out


def trees(g: torch.Generator, S: int, W: int, V: int, length: Tensor) -> Rows:
    """A forest over few tokens, so that they repeat along paths; padding rows at the end."""
    parent = torch.zeros(S + 1, W, dtype=torch.int64)
    for i in range(1, W):
        parent[:, i] = torch.randint(max(i - 3, 0), i, (S + 1,), generator=g)
    token, score = torch.randint(0, min(V, 4), (S + 1, W), generator=g), torch.rand(S + 1, W, generator=g)
    return pack_tree_twin(token, parent, score, torch.arange(S + 1) < S, length, S * W + 2)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """1 to 3 slots and the trash slot; vocabularies that do and do not fill a mask's words."""
    S, W, V = draw(st.integers(1, 3)), draw(st.integers(1, 7)), draw(st.sampled_from([5, 32, 45, 70]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    prompt = [torch.randint(0, V, (3,), generator=g).tolist() for _ in range(S)]
    produced = [torch.randint(0, min(V, 6), (n,), generator=g).tolist() for n in range(S)]
    length = torch.tensor([len(p) + len(q) for p, q in zip(prompt, produced, strict=True)] + [1])
    rows = trees(g, S, W, V, length)
    logits = (torch.randn(len(rows.token), V, generator=g) * 4).to(
        draw(st.sampled_from([torch.float32, torch.bfloat16]))
    )
    logits[0, 0] = draw(st.sampled_from([-INF, INF, -0.0, 1.0]))
    some = st.sampled_from([0.0, 0.0, 0.7, -1.3, 2.0])
    penalties = [(draw(some), draw(some), draw(st.sampled_from([1.0, 1.0, 1.3, 0.6]))) for _ in range(S)]
    ids, value = st.integers(0, V - 1), st.sampled_from([-100.0, -0.1, 3.3, 100.0])
    bias = [draw(st.dictionaries(ids, value, max_size=PLACES)) for _ in range(S)]
    until = [draw(st.sampled_from([0, 4, 6, 9])) for _ in range(S)]
    ends = [draw(st.lists(ids, max_size=2, unique=True)) for _ in range(S)]
    allowed = [draw(st.sampled_from([set(range(V)), {0, V - 1}, set(range(0, V, 3))])) for _ in rows.token]
    # the last slot is the trash slot's
    text = ([*prompt, []], [*produced, []])
    return Case(logits, rows, *text, [*penalties, (0.0, 0.0, 1.0)], [*bias, {}], [*until, 0], [*ends, []], allowed)


STAGES = ("penalties", "bias", "minimum", "allowed")


@pytest.mark.usefixtures("cpu_path")
@settings(max_examples=80, deadline=None)
@given(cases(), st.sets(st.sampled_from(STAGES), min_size=1), st.sampled_from([2, 64]))
def test_is_the_literal_order(case: Case, used: set[str], chunk: int) -> None:
    """Bit for bit, with every set of stages; what is left out is neutral in the derivation."""
    tables = {name: table for name, table in case.tables().items() if name in used}
    slots, V = len(case.prompt), case.logits.shape[1]
    if "penalties" not in used:
        case.penalties = [(0.0, 0.0, 1.0)] * slots
    if "bias" not in used:
        case.bias = [{}] * slots
    if "minimum" not in used:
        case.until = [0] * slots
    if "allowed" not in used:
        case.allowed = [set(range(V))] * len(case.allowed)
    before = case.logits.clone()
    with patch("redraft.kernels.adjust.CHUNK", chunk):
        got = adjust(case.logits, case.rows, **tables)
    assert got.dtype == torch.float32
    assert torch.equal(case.logits, before)
    for row in range(len(got)):
        np.testing.assert_array_equal(got[row].numpy(), case.literal(row))


def moved(parts: Any, device: torch.device) -> Any:
    """A tensor, or a dataclass of tensors, on ``device``."""
    if isinstance(parts, Tensor):
        return parts.to(device)
    return type(parts)(*(getattr(parts, field.name).to(device) for field in fields(parts)))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases(), used=st.sets(st.sampled_from(STAGES)))
def test_kernel_equals_twin(kernel_device: torch.device, poisoned: Any, case: Case, used: set[str]) -> None:
    """Byte for byte; small blocks, so that rows span several and the last one is ragged."""
    tables = {name: table for name, table in case.tables().items() if name in used}
    rows, there = moved(case.rows, kernel_device), {name: moved(one, kernel_device) for name, one in tables.items()}
    with poisoned():
        got = adjust_kernel(case.logits.to(kernel_device), rows, **there, block=32).cpu()
    assert torch.equal(got.view(torch.int32), adjust_twin(case.logits, case.rows, **tables).view(torch.int32))


def test_kernel_refuses_what_it_cannot_read(kernel_device: torch.device) -> None:
    rows = moved(trees(torch.Generator().manual_seed(0), 1, 2, 40, torch.tensor([1, 1])), kernel_device)
    logits = torch.zeros(len(rows.token), 40, device=kernel_device)
    count = torch.zeros(2, 40, dtype=torch.int64, device=kernel_device)
    penalties = Penalties(*(torch.ones(2, device=kernel_device) for _ in range(3)), count)
    with pytest.raises(ValueError, match=r"penalties\.count must be torch\.int32"):
        adjust_kernel(logits, rows, penalties=penalties)
    with pytest.raises(ValueError, match="logits must be contiguous"):
        adjust_kernel(logits.t(), rows)


@settings(max_examples=25, deadline=None)
@given(case=cases(), data=st.data())
def test_the_whole_order_up_to_the_token(literal_choice: Callable[..., int], case: Case, data: st.DataObject) -> None:
    """Penalties and bias, min_tokens, grammar, temperature, min_p, top_k, top_p, noise, argmax."""
    case.logits = case.logits.nan_to_num(posinf=50.0, neginf=-INF)
    options = st.sampled_from([(0.0, 1.0, 0.0, 0), (0.8, 1.0, 0.0, 0), (1.2, 0.8, 0.05, 4), (1.0, 1.0, 0.0, 2)])
    chosen = [data.draw(options) for _ in case.prompt]
    table = SamplingTable.greedy(len(chosen) - 1, "cpu")
    for slot, (temperature, top_p, min_p, top_k) in enumerate(chosen):
        for name, value in (("temperature", temperature), ("top_p", top_p), ("min_p", min_p), ("top_k", top_k)):
            getattr(table, name)[slot] = value
    table.seed.copy_(torch.arange(len(table.seed)) * 7919 - 3)
    z = adjust(case.logits, case.rows, **case.tables())
    got = sample(z, case.rows.slot, case.rows.position, table, sampled=True, filtered=True)
    for row, slot in enumerate(case.rows.slot.tolist()):
        literal = case.literal(row)
        if np.isneginf(literal).all():
            assert got[row] == 0
            continue
        produced = int(case.rows.position[row]) + 1
        assert got[row] == literal_choice(literal, *chosen[slot], int(table.seed[slot]), produced)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_a_path_counts_as_if_it_were_committed(case: Case) -> None:
    """Every node's row has the bits of a root's row after its path was produced: what promise 1 rests on."""
    tables = case.tables()
    together = adjust(case.logits, case.rows, **tables)
    for row in range(len(together)):
        slot, node, path = int(case.rows.slot[row]), row, list[int]()
        while case.rows.depth[node] > 0:
            path.append(int(case.rows.token[node]))
            node = int(case.rows.parent[node])
        count = tables["penalties"].count.clone()
        for token in path:
            count[slot, token] += PRODUCED
        p, one, zero = tables["penalties"], slice(row, row + 1), torch.zeros(1, dtype=torch.int64)
        slots = torch.zeros(len(case.prompt), dtype=torch.int64)
        root = (case.rows.token[one], torch.tensor([slot]), case.rows.position[one], zero, zero, zero, zero[:, None])
        asked = {
            **tables,
            "penalties": Penalties(p.presence, p.frequency, p.repetition, count),
            "allowed": tables["allowed"][one],
        }
        plain = adjust(case.logits[one], Rows(*root, slots, slots + 1), **asked)
        assert torch.equal(plain[0], together[row])


@settings(max_examples=40, deadline=None)
@given(cases(), st.integers(0, 2**32 - 1))
def test_commits_are_counted(case: Case, seed: int) -> None:
    """The table after a round is the table that a host would make of the longer text."""
    g = torch.Generator().manual_seed(seed)
    rows, slots = case.rows, len(case.prompt)
    choice = torch.randint(0, 4, rows.token.shape, generator=g)
    length = torch.tensor([len(p) + len(q) for p, q in zip(case.prompt, case.produced, strict=True)])
    active = torch.arange(slots) < slots - 1
    tokens, ends = torch.zeros(slots, 40, dtype=torch.int64), torch.full((slots, 1), 3)
    committed: Committed = accept_twin(rows, choice, tokens, length, length + 3, active, ends)
    table = case.tables()["penalties"]
    count_committed(table, committed)
    for slot in range(slots):
        case.produced[slot] = case.produced[slot] + committed.tokens[slot, : int(committed.count[slot])].tolist()
    assert torch.equal(table.count, case.tables()["penalties"].count)


def test_neutral_slots_keep_their_bits() -> None:
    """So that a request's output does not depend on what its neighbours ask for."""
    g = torch.Generator().manual_seed(0)
    length = torch.tensor([4, 4, 1])
    rows = trees(g, 2, 6, 300, length)
    logits = torch.randn(len(rows.token), 300, generator=g).bfloat16()
    logits[:, 7] = -INF
    logits[:, 8] = INF
    quiet = Penalties(*(torch.tensor([1.5, x, x]) for x in (0.0, 0.0, 1.0)), torch.ones(3, 300, dtype=torch.int32) * 5)
    bias = Bias(torch.tensor([[3, 4], [0, 0], [0, 0]]), torch.tensor([[9.0, 9.0], [0.0, 0.0], [0.0, 0.0]]))
    minimum = MinTokens(torch.tensor([99, 0, 0]), torch.tensor([[1, 2], [1, 2], [-1, -1]]))
    got = adjust(logits, rows, penalties=quiet, bias=bias, minimum=minimum)
    asked = rows.slot == 0
    assert torch.equal(got[~asked], logits[~asked].float())
    assert not torch.equal(got[asked], logits[asked].float())


def test_a_mask_of_another_shape_is_refused() -> None:
    rows = trees(torch.Generator().manual_seed(0), 1, 2, 40, torch.tensor([1, 1]))
    logits = torch.zeros(len(rows.token), 40)
    for allowed in (torch.zeros(4, 1, dtype=torch.int32), torch.zeros(4, 2), torch.zeros(3, 2, dtype=torch.int32)):
        with pytest.raises(ValueError, match="allowed must be int32 of shape"):
            adjust(logits, rows, allowed=allowed)


def test_shapes_are_fixed() -> None:
    """Under FakeTensorMode a data-dependent op would raise."""
    with FakeTensorMode():
        length, ids = torch.ones(4, dtype=torch.int64), torch.zeros(4, 8, dtype=torch.int64)
        rows = pack_tree_twin(ids, ids.clone(), torch.zeros(4, 8), torch.zeros(4, dtype=torch.bool), length, 12)
        penalties = Penalties(*(torch.ones(4) for _ in range(3)), torch.ones(4, 100, dtype=torch.int32))
        z = adjust(
            torch.zeros(12, 100, dtype=torch.bfloat16),
            rows,
            penalties=penalties,
            bias=Bias(torch.zeros(4, 512, dtype=torch.int64), torch.zeros(4, 512)),
            minimum=MinTokens(length, ids),
            allowed=torch.zeros(12, 4, dtype=torch.int32),
        )
        assert z.shape == (12, 100)
