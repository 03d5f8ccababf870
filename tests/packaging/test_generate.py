"""`redraft generate`: what it asks the model, and the figures it ends with."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from redraft.server.chat_template import ChatTemplate
from redraft.server.engine.types import FinishReason, RedraftError, RoundOutput
from redraft.server.generate import Prompt, Tally
from redraft.server.text import TextTokenizer


def test_the_prompt_goes_through_the_chat_template_unless_raw(smollm2: Path) -> None:
    tokenizer = TextTokenizer.from_folder(smollm2)
    own = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert Prompt("Hi", system="Be brief.").encode(tokenizer) == tokenizer.encode(own, special_tokens=False)
    assert tokenizer.decode(Prompt("Hi", raw=True).encode(tokenizer)) == "Hi"


def test_a_target_without_a_template_needs_raw(smollm2: Path) -> None:
    tokenizer = TextTokenizer.from_folder(smollm2)
    tokenizer.chat_template = None
    with pytest.raises(RedraftError, match="--raw"):
        Prompt("Hi").encode(tokenizer)
    tokenizer.chat_template = ChatTemplate("{{ messages[0].content }}", {})
    assert tokenizer.decode(Prompt("Hi").encode(tokenizer)) == "Hi"


def test_a_message_that_the_template_refuses_is_one_line() -> None:
    template = ChatTemplate("{{ raise_exception('no system\\nhere') }}", {})
    tokenizer = TextTokenizer(Tokenizer(models.BPE()), template)
    with pytest.raises(RedraftError, match="does not take these messages: no system here"):
        Prompt("Hi", system="Be brief.").encode(tokenizer)


def test_the_figures_count_rounds_tokens_and_time() -> None:
    tally = Tally()
    tally.add(RoundOutput("a", tokens=(1, 2, 3), accepted=2, drafted=5, prompt_seconds=0.5))
    tally.add(RoundOutput("a", tokens=(4,), accepted=0, drafted=5))
    tally.add(RoundOutput("a", tokens=(5, 6, 7), accepted=2, drafted=4, finish_reason=FinishReason.LENGTH))
    first, second, *histogram = tally.report(2.5, "ngram-1").splitlines()
    assert first == "7 tokens in 2.00 s after 0.50 s of prefill: 3.5 tokens/s"
    assert second == "draft ngram-1: τ = 2.33 tokens a round over 3 rounds; 4 of 14 drafted tokens accepted"
    assert [line.split() for line in histogram] == [
        ["accepted", "0", "1", "rounds", "33.3", "%", "█" * 20],
        ["accepted", "1", "0", "rounds", "0.0", "%"],
        ["accepted", "2", "2", "rounds", "66.7", "%", "█" * 40],
    ]
