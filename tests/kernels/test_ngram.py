"""ngram against a literal search with dictionaries and exact fractions; twin against Triton kernel; odd slots."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from fractions import Fraction
from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from redraft.kernels import ngram as op
from redraft.kernels.ngram import ngram, ngram_kernel, ngram_twin
from redraft.kernels.pack_tree import pack_tree_twin

VOCAB = 6
TEXTS = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30)
Run = Callable[..., tuple[Tensor, Tensor, Tensor]]
Alone = Callable[[ModuleType], AbstractContextManager[None]]


def state(texts: list[list[int]], capacity: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op's tensors for active slots with ``texts`` and an inactive trash slot; what is no text is -7."""
    tokens = torch.full((len(texts) + 1, capacity), -7)
    for slot, text in enumerate(texts):
        tokens[slot, : len(text)] = torch.tensor(text)
    length = torch.tensor([len(text) for text in texts] + [0])
    newest = torch.randint(-9, 99, (len(texts) + 1, VOCAB), dtype=torch.int32)
    return tokens, length, length > 0, newest


def votes_after(text: list[int], drafted: list[int]) -> tuple[dict[int, int], dict[int, int]]:
    """For every token that followed something in the searched text: its votes, and where it occurred last."""
    context = text + drafted
    start = max(len(text) - op.WINDOW, 0)
    votes: dict[int, int] = {}
    last: dict[int, int] = {}
    for place in range(start + 1, len(text)):
        run = 0
        while run < op.RUN and place - 1 - run >= start and text[place - 1 - run] == context[-1 - run]:
            run += 1
        weight = op.WEIGHTS[run - 1] if run else 0
        weight += op.RECENT_WEIGHT if place >= len(text) - op.RECENT else 0
        votes[text[place]] = votes.get(text[place], 0) + weight
        last[text[place]] = place
    return votes, last


def search(text: list[int], max_nodes: int) -> list[tuple[int, int, Fraction]]:
    """Token, parent and score of every drafted node: the definition, without regard to cost."""
    spine: list[tuple[int, int, Fraction]] = []
    siblings: list[tuple[int, int, Fraction]] = []
    reach = Fraction(1)
    for depth in range(min(max_nodes, op.MAX_DEPTH)):
        votes, last = votes_after(text, [token for token, _, _ in spine])
        total = sum(votes.values()) + op.ESCAPE
        ranked = sorted((t for t in votes if votes[t]), key=lambda t: (votes[t], last[t]), reverse=True)[: op.BRANCH]
        if not ranked:
            break
        nodes = [(token, depth, reach * Fraction(votes[token], total)) for token in ranked]
        spine.append(nodes[0])
        siblings += nodes[1:]
        reach = nodes[0][2]
    everything = spine + siblings
    score = torch.tensor([float(node[2]) for node in everything])  # ties are ties of fp32
    best = sorted(range(len(everything)), key=lambda i: (-score[i].item(), i))[:max_nodes]
    return [everything[i] for i in sorted(best)]


def assert_is_search(texts: list[list[int]], capacity: int, max_nodes: int, context_bound: int) -> None:
    tokens, length, active, newest = state(texts, capacity)
    token, parent, score = ngram(tokens, length, active, newest, max_nodes=max_nodes, context_bound=context_bound)
    assert token.shape == parent.shape == score.shape == (len(texts) + 1, max_nodes + 1)
    for slot, text in enumerate(texts):
        nodes = [(text[-1], 0, Fraction(1)), *search(text, max_nodes)]
        present = score[slot] > -torch.inf
        assert token[slot, present].tolist() == [node[0] for node in nodes]
        assert parent[slot, present].tolist() == [node[1] for node in nodes]
        # exact fractions against fp64 rounded to fp32
        expected = torch.tensor([float(node[2]) for node in nodes])
        torch.testing.assert_close(score[slot, present], expected, rtol=2e-7, atol=0)
    assert (score[len(texts)] == -torch.inf).all()
    number = torch.arange(1, max_nodes + 1)
    assert (parent[:, 1:] < number).all()
    assert (parent >= 0).all()


@pytest.mark.usefixtures("cpu_path")
@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=3), st.integers(1, op.MAX_NODES), st.integers(0, 20))
def test_is_the_definition(texts: list[list[int]], max_nodes: int, spare: int) -> None:
    longest = max(map(len, texts))
    assert_is_search(texts, longest + spare // 2, max_nodes, longest + spare)


@pytest.mark.usefixtures("cpu_path")
@settings(max_examples=20, deadline=None)
@given(TEXTS, st.integers(1, 12))
def test_window_and_recent_are_bounded(text: list[int], max_nodes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(op, "WINDOW", 12)
        patch.setattr(op, "RECENT", 5)
        assert_is_search([text], len(text), max_nodes, len(text))


@pytest.mark.usefixtures("cpu_path")
@pytest.mark.parametrize("text", [[3], [3, 3], [3, 4], [0, 0, 0], [5, 0]], ids=str)
def test_short_text_at_capacity(text: list[int]) -> None:
    assert_is_search([text], len(text), 7, len(text))


@pytest.mark.usefixtures("cpu_path")
def test_loop_is_drafted_to_full_depth() -> None:
    """A text that repeats itself: the spine must go on past the text's end, not stop where the copy runs out."""
    token, parent, score = ngram(*state([[1, 2, 3] * 5], 15), max_nodes=8, context_bound=15)
    assert token[0].tolist() == [3, 1, 2, 3, 1, 2, 3, 1, 2]
    assert parent[0].tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7]
    assert score[0, -1] > 0.5


@pytest.mark.usefixtures("cpu_path")
@settings(max_examples=15, deadline=None)
@given(TEXTS, st.integers(1, 9), st.integers(1, 3000))
def test_answer_does_not_depend_on_bound_or_company(text: list[int], max_nodes: int, more: int) -> None:
    alone = ngram(*state([text], len(text)), max_nodes=max_nodes, context_bound=len(text))
    company = state([[1, 2] * 20, text], 64)
    together = ngram(*company, max_nodes=max_nodes, context_bound=max(len(text), 40) + more)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one[0], other[1])


def test_scores_do_not_rise_along_the_path() -> None:
    torch.manual_seed(3)
    texts = [torch.randint(0, VOCAB, (60,)).tolist() for _ in range(4)]
    _, parent, score = ngram_twin(*state(texts, 64), max_nodes=20, context_bound=60)
    assert (score <= score.gather(1, parent)).all()


def test_pack_tree_takes_the_candidates() -> None:
    tokens, length, active, newest = state([[1, 2, 3, 1, 2, 3, 1], [4]], 10)
    tree = ngram_twin(tokens, length, active, newest, max_nodes=5, context_bound=10)
    rows = pack_tree_twin(*tree, active, length, 7)
    assert rows.row_count.tolist() == [6, 1, 0]
    assert rows.token[:4].tolist() == [1, 2, 3, 1]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=40), min_size=1, max_size=3),
    st.integers(1, op.MAX_NODES),
    st.integers(0, 9),
)
def test_compiled_is_twin(compiled: Alone, texts: list[list[int]], max_nodes: int, spare: int) -> None:
    assert_compiled_is_twin(compiled, state(texts, max(map(len, texts))), max_nodes, max(map(len, texts)) + spare)


@pytest.mark.parametrize("tokens", [1, 2, 30, 400])
@pytest.mark.parametrize("window", [33, 300, 2048])
def test_compiled_is_twin_beyond_the_window(
    compiled: Alone, monkeypatch: pytest.MonkeyPatch, window: int, tokens: int
) -> None:
    monkeypatch.setattr(op, "WINDOW", window)
    torch.manual_seed(window)
    recent = range(op.RECENT - 1, op.RECENT + 4)
    texts = [torch.randint(0, tokens, (n,)).tolist() for n in (2500, window + 1, window, window - 1, 1, *recent)]
    tensors = state(texts, 2500)
    newest = torch.randint(-9, 9999, (len(texts) + 1, tokens), dtype=torch.int32)
    for max_nodes in (1, 7, op.MAX_NODES):
        assert_compiled_is_twin(compiled, (*tensors[:3], newest), max_nodes, 2500)


def assert_compiled_is_twin(
    compiled: Alone, tensors: tuple[Tensor, Tensor, Tensor, Tensor], max_nodes: int, context_bound: int
) -> None:
    """To the bit, absent nodes included, in active slots."""
    expected = ngram_twin(*tensors, max_nodes=max_nodes, context_bound=context_bound)
    with compiled(op):
        found = ngram(*tensors, max_nodes=max_nodes, context_bound=context_bound)
    active = tensors[2]
    for one, other in zip(expected, found, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one[active], other[active])
    assert torch.equal(expected[2], found[2])
    assert (found[0][~active] == 0).all()


@pytest.mark.usefixtures("cpu_path")
@pytest.mark.parametrize("wrong", [VOCAB, -1, 2**40])
def test_strange_ids_are_what_torch_makes_of_them(wrong: int) -> None:
    """Torch says what is wrong with an id beyond the vocabulary; a negative one is no text."""
    tensors = state([[1, 2, 3, 1, wrong, 1, 2]], 10)
    if wrong > 0:
        with pytest.raises(RuntimeError, match="out of bounds"):
            ngram(*tensors, max_nodes=5, context_bound=10)
    else:
        for one, other in zip(
            ngram(*tensors, max_nodes=5, context_bound=10),
            ngram_twin(*tensors, max_nodes=5, context_bound=10),
            strict=True,
        ):
            assert torch.equal(one, other)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=0, max_size=40), min_size=1, max_size=3),
    st.sampled_from([1, 2, 5, 9, 63]),
    st.integers(0, 9),
)
def test_kernel_is_twin(
    kernel_device: torch.device,
    poisoned: Callable[[], AbstractContextManager[None]],
    texts: list[list[int]],
    max_nodes: int,
    spare: int,
) -> None:
    longest = max(1, *map(len, texts))
    with poisoned():
        assert_kernel_is_twin(kernel_device, state(texts, longest), max_nodes, longest + spare)


def test_kernel_is_twin_beyond_the_window(
    kernel_device: torch.device,
    poisoned: Callable[[], AbstractContextManager[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(op, "WINDOW", 33)
    torch.manual_seed(5)
    texts = [torch.randint(0, 3, (n,)).tolist() for n in (150, 34, 33, 1)]
    with poisoned():
        assert_kernel_is_twin(kernel_device, state(texts, 150), 9, 150)


def assert_kernel_is_twin(
    device: torch.device, tensors: tuple[Tensor, Tensor, Tensor, Tensor], max_nodes: int, context_bound: int
) -> None:
    expected = ngram_twin(*tensors, max_nodes=max_nodes, context_bound=context_bound)
    on_device = (tensor.to(device) for tensor in tensors)
    found = ngram_kernel(*on_device, max_nodes=max_nodes, context_bound=context_bound)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other.cpu())


def test_twin_has_fixed_shapes() -> None:
    with FakeTensorMode():
        tokens, length = torch.zeros(4, 100, dtype=torch.int64), torch.ones(4, dtype=torch.int64)
        newest = torch.zeros(4, VOCAB, dtype=torch.int32)
        token, parent, score = ngram_twin(tokens, length, length > 0, newest, max_nodes=6, context_bound=50)
    assert token.shape == parent.shape == score.shape == (4, 7)
    assert (token.dtype, parent.dtype, score.dtype) == (torch.int64, torch.int64, torch.float32)


@pytest.mark.parametrize("max_nodes", [0, 64])
@pytest.mark.parametrize("run", [ngram, ngram_twin, ngram_kernel])
def test_refuses_trees_it_cannot_make(run: Run, max_nodes: int) -> None:
    with pytest.raises(ValueError, match="max_nodes must be 1 to 63"):
        run(*state([[1]], 4), max_nodes=max_nodes, context_bound=4)


def test_kernel_refuses_tensors_that_do_not_fit(kernel_device: torch.device) -> None:
    tokens, length, active, newest = (tensor.to(kernel_device) for tensor in state([[1], [2]], 4))
    with pytest.raises(ValueError, match="do not fit 3 rows"):
        ngram_kernel(tokens, length, active[:2], newest, max_nodes=3, context_bound=4)
    with pytest.raises(ValueError, match=r"newest must be torch\.int32"):
        ngram_kernel(tokens, length, active, newest.long(), max_nodes=3, context_bound=4)
