"""Public sets of prompts on the Hugging Face hub that ``redraft data fetch`` knows by name.

A set is here if its files are plain data (JSON or parquet): nothing of a repository is ever run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FUNCTION = "Complete the following Python function.\n```python\n{}```"


@dataclass(frozen=True, slots=True)
class PublicSet:
    """Where a set's prompts lie."""

    repository: str
    files: str
    """Pattern of their names; ``{split}`` stands for the split."""
    splits: tuple[str, ...]
    """The first is the default."""
    fields: tuple[str, ...]
    """Make up the user's turn, joined by an empty line; a field that is a list holds all turns."""
    form: str = "{}"
    """What is put to the user, ``{}`` being the fields."""
    held_out: tuple[str, ...] = ()
    """Splits that drafts and models are measured on."""

    def turns(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        """What the user says in ``record``, nothing where it is empty; raises ``KeyError`` or ``TypeError``."""
        values = [record[name] for name in self.fields]
        if isinstance(values[0], list):
            texts = [_text(turn) for turn in values[0]]
            return tuple(texts) if all(texts) else ()
        text = "\n\n".join(filter(None, map(_text, values)))
        return (self.form.replace("{}", text),) if text else ()


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text expected, found {type(value).__name__}")
    return value if value.strip() else ""


SETS = {
    "gsm8k": PublicSet("openai/gsm8k", "main/{split}-*.parquet", ("train", "test"), ("question",), held_out=("test",)),
    "math500": PublicSet("HuggingFaceH4/MATH-500", "{split}.jsonl", ("test",), ("problem",), held_out=("test",)),
    "humaneval": PublicSet(
        "openai/openai_humaneval",
        "openai_humaneval/{split}-*.parquet",
        ("test",),
        ("prompt",),
        FUNCTION,
        held_out=("test",),
    ),
    "mt-bench": PublicSet(
        "HuggingFaceH4/mt_bench_prompts", "raw/question.jsonl", ("test",), ("prompt",), held_out=("test",)
    ),
    "alpaca": PublicSet("yahma/alpaca-cleaned", "alpaca_data_cleaned.json", ("train",), ("instruction", "input")),
    "code-alpaca": PublicSet("sahil2801/CodeAlpaca-20k", "code_alpaca_20k.json", ("train",), ("instruction", "input")),
    "dolly": PublicSet(
        "databricks/databricks-dolly-15k", "databricks-dolly-15k.jsonl", ("train",), ("instruction", "context")
    ),
    "ultrachat": PublicSet(
        "HuggingFaceH4/ultrachat_200k", "data/{split}-*.parquet", ("train_sft", "test_sft"), ("prompt",)
    ),
}
