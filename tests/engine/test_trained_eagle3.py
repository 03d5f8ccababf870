"""From training to serving: an EAGLE-3 draft that knows two texts by heart is accepted as often as training says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from redraft.drafts.checkpoint import MAPS, read_draft, write_draft
from redraft.drafts.eagle3_config import Eagle3Config
from redraft.drafts.training.blocks import Vocabulary
from redraft.drafts.training.data import Text
from redraft.drafts.training.eagle3 import Eagle3
from redraft.drafts.training.eagle3_module import Eagle3Module
from redraft.drafts.training.eagle3_rounds import drafted_rounds
from redraft.drafts.training.eagle3_settings import Eagle3Settings
from redraft.drafts.training.module import rope_for
from redraft.drafts.training.rounds import walk
from redraft.drafts.training.tap_cache import TapCache
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.load import build_engine
from redraft.server.engine.target.spec import read_spec
from redraft.server.engine.target.teacher import TargetTeacher
from redraft.server.engine.types import Request, SamplingParams

CPU = torch.device("cpu")
PROMPTS = ([5, 9, 5, 9, 5, 9, 5], list(range(20, 120)), [7])
"""The second one's answer crosses a page; before the third's only token there is no feature."""
PARAMS = SamplingParams(max_tokens=30, temperature=0)
DEPTH, STEPS = 4, 60


def decode(target: Path, draft: str, **options: object) -> tuple[list[list[int]], list[int]]:
    """Answers to the prompts, decoded together, and how many drafted tokens each round accepted."""
    config = EngineConfig(
        target=str(target), target_name="tiny", target_sha="0", draft=draft, dtype="fp32", device="cpu", max_num_seqs=3,
        self_check=False, measure_costs=False, **options,  # type: ignore[arg-type]
    )  # fmt: skip
    engine = build_engine(config)
    outputs, accepted = [[] for _ in PROMPTS], []  # type: list[list[int]], list[int]
    for i, prompt in enumerate(PROMPTS):
        engine.submit(Request(str(i), tuple(prompt), PARAMS))
    while engine.busy:
        for output in engine.step().outputs:
            outputs[int(output.request_id)] += output.tokens
            accepted.append(output.accepted)
    return outputs, accepted


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_a_trained_draft_is_accepted_as_often_as_training_measures(
    tiny_target: Callable[[str], Path], random_draft: Callable[..., Path], tmp_path: Path, family: str
) -> None:
    target, folder = tiny_target(family), tmp_path / "learnt"
    expected, _ = decode(target, "none")
    texts = [Text((*prompt, *said), len(prompt)) for prompt, said in zip(PROMPTS, expected, strict=True)]
    kept = sorted({token for said in expected for token in said})
    with torch.inference_mode(False), torch.enable_grad():  # building an engine turned both
        teacher = TargetTeacher(target, read_spec(target), "tiny", CPU, torch.float32)
        vocabulary = Vocabulary(teacher, kept)
        random = read_draft(random_draft(target, kind="eagle3", kept=kept, steps=DEPTH))
        config = random.config
        assert isinstance(config, Eagle3Config)
        module = Eagle3Module(config)
        module.load_state_dict({name: tensor.float() for name, tensor in random.tensors.items() if name not in MAPS})
        settings = Eagle3Settings(depth=DEPTH, steps=STEPS, batch=3, micro_batch=3, optimiser="adamw", rate=5e-3)
        cache = TapCache(teacher, config.taps, None)
        run = Eagle3(settings, config, teacher, vocabulary, module, texts, [], cache, tmp_path / "run")
        assert run.run(lambda progress: None, lambda: False, STEPS, STEPS)
        write_draft(folder, config, module.state_dict(), tuple(kept), {})
        # as it is served: rounded
        served = read_draft(folder)
        module.load_state_dict({name: tensor.float() for name, tensor in served.tensors.items() if name not in MAPS})
        states = [teacher.states(text.tokens, config.taps) for text in texts]
        made = drafted_rounds(module, teacher, vocabulary, rope_for(config, 300, CPU), texts, states)
        packed = [rounds.accepted.tolist() for rounds in made]
    rounds = [counts[place] for counts in packed for place in walk(counts)]
    assert sum(map(len, packed)) / len(rounds) > 2.5
    chains, accepted = decode(target, str(folder), draft_branch=1, max_nodes=DEPTH, draft_ngram=False)
    assert chains == expected
    assert sorted(accepted) == sorted(rounds)
    # a tree of the same draft, and n-gram lookup beside it, change no token
    for options in ({"draft_ngram": False}, {}, {"max_nodes": 12}):
        outputs, more = decode(target, str(folder), **options)
        assert outputs == expected
        assert max(more) > 2
