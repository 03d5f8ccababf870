"""The packed module against chains derived token by token, and what their rows see."""

import pytest
import torch

from redraft.drafts.training.eagle3_batch import make_batch
from redraft.drafts.training.module import rope_for

CPU = torch.device("cpu")


@pytest.fixture
def packed(toy, eagle3_config, random_eagle3):
    """``run(texts, states)``: normed states of all chains of ``texts`` in one pass."""
    teacher, config = toy(), eagle3_config()
    module = random_eagle3(config)

    def run(texts, states, anchors=None):
        batch = make_batch(config.steps, teacher, texts, states, anchors or [text.anchors for text in texts])
        with torch.no_grad():
            made = module(
                batch.taps, batch.embedded, batch.start, teacher.embedding[batch.fed], rope_for(config, 99, CPU)
            )
        return made, batch

    run.teacher, run.config, run.module = teacher, config, module
    return run


def test_parameters_are_the_published_tensors(eagle3_config, random_eagle3) -> None:
    config = eagle3_config()
    weights = {name: tuple(tensor.shape) for name, tensor in random_eagle3(config).state_dict().items()}
    assert weights == {name: shape for name, shape in config.shapes.items() if name not in ("d2t", "t2d")}


def test_packed_chains_are_the_literal_ones(packed, make_texts, literal) -> None:
    texts = make_texts((3, 9), (1, 12), (7, 3))
    states = [packed.teacher.states(text.tokens, packed.config.taps) for text in texts]
    made, _ = packed(texts, states)
    slow = literal(packed.module, packed.teacher.embedding)
    compared = 0
    with torch.no_grad():
        for number, text in enumerate(texts):
            for place, anchor in enumerate(text.anchors):
                if anchor == 0:
                    continue  # no token before it, no pair
                fed = text.tokens[anchor + 1 :]
                known = min(len(fed) + 1, packed.config.steps)
                fed = (*fed, *[0] * packed.config.steps)
                chain = slow.chain(text.tokens, states[number].taps, anchor, fed)
                torch.testing.assert_close(
                    made[number, place, :known], torch.stack(chain[:known]), rtol=1e-4, atol=1e-5
                )
                compared += known
    assert compared > 70


def test_several_texts_are_what_each_is_alone(packed, make_texts) -> None:
    texts = make_texts((3, 9), (1, 12), (7, 3))
    states = [packed.teacher.states(text.tokens, packed.config.taps) for text in texts]
    together, batch = packed(texts, states)
    assert batch.wanted.shape == (3, 12, 4)
    for number, (text, state) in enumerate(zip(texts, states, strict=True)):
        alone, single = packed([text], [state])
        width = len(text.anchors)
        real = single.wanted[0] >= 0
        torch.testing.assert_close(together[number, :width][real], alone[0][real], rtol=1e-5, atol=1e-6)
        assert torch.equal(batch.wanted[number, :width], single.wanted[0])
        assert (batch.wanted[number, width:] == -1).all()


def test_what_is_wanted_is_the_text_behind_the_anchor(packed, make_texts) -> None:
    texts = make_texts((3, 9), (1, 6))
    _, batch = packed(texts, [packed.teacher.states(text.tokens, packed.config.taps) for text in texts])
    for number, text in enumerate(texts):
        for place, anchor in enumerate(text.anchors):
            behind = list(text.tokens[anchor + 1 : anchor + 5]) if anchor > 0 else []
            assert batch.wanted[number, place].tolist() == behind + [-1] * (4 - len(behind))
            known = len(behind)
            assert batch.fed[number, place, :known].tolist() == list(text.tokens[anchor : anchor + 4])[:known]


class TestSight:
    """Every row depends on the text up to its token, on the states before its anchor, and on nothing else."""

    @pytest.fixture
    def alone(self, packed, make_texts):
        (text,) = make_texts((4, 9))
        state = packed.teacher.states(text.tokens, packed.config.taps)
        before, _ = packed([text], [state])
        return text, state, before[0]

    def test_states_before_the_anchor_and_no_others(self, packed, alone) -> None:
        text, state, before = alone
        for position in range(len(text.tokens)):
            taps = state.taps.clone()
            taps[position] += 3.0
            after = packed([text], [type(state)(taps, state.final)])[0][0]
            for place, anchor in enumerate(text.anchors):
                rows = [torch.equal(a, b) for a, b in zip(before[place], after[place], strict=True)]
                assert rows == [position >= anchor] * 4, (position, anchor)

    def test_tokens_up_to_the_one_fed_and_no_others(self, packed, alone) -> None:
        text, state, before = alone
        for position in range(len(text.tokens)):
            tokens = list(text.tokens)
            tokens[position] = (tokens[position] + 1) % 37
            after = packed([type(text)(tuple(tokens), text.prompt)], [state])[0][0]
            for place, anchor in enumerate(text.anchors):
                rows = [torch.equal(a, b) for a, b in zip(before[place], after[place], strict=True)]
                # the first token is nobody's second; a row reads the token it is fed and all before it
                seen = [0 < position <= anchor + i for i in range(4)]
                real = min(4, len(text.tokens) - 1 - anchor)
                assert rows[:real] == [not one for one in seen[:real]], (position, anchor)

    def test_other_chains_change_no_bit(self, packed, alone) -> None:
        text, state, before = alone
        anchors = list(text.anchors)
        for place, anchor in enumerate(anchors):
            other = [anchors[(place + 1) % len(anchors)]] * len(anchors)
            other[place] = anchor
            after = packed([text], [state], [other])[0][0]
            assert torch.equal(before[place], after[place])
