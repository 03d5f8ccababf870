"""Prompts of the GPU suite as token ids: random, from a file of ids, or from text where there is a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from redraft.benchmarks.prompts import read_prompts
from redraft.server.engine.types import RedraftError


def random_prompts(vocab: int, count: int, seed: int = 0) -> list[list[int]]:
    """``count`` prompts of different lengths, each one passage repeated, so that the n-gram drafter finds something."""
    generator = torch.Generator().manual_seed(seed)
    prompts = []
    for number in range(count):
        passage = torch.randint(vocab, (5 + 11 * number,), generator=generator).tolist()
        prompts.append(passage * 2)
    return prompts


def read_id_prompts(path: Path, target: Path | None) -> list[list[int]]:
    """Lists of ids from a .json file, or the first turns of a .jsonl file in the template of ``target``."""
    if path.suffix != ".jsonl":
        try:
            prompts = json.loads(path.read_text())
        except (OSError, ValueError):
            prompts = None
        if not isinstance(prompts, list) or not prompts or not all(_is_ids(prompt) for prompt in prompts):
            raise RedraftError(f"{path} must hold a list of lists of token ids, as JSON")
        return prompts
    # only here: ids need no tokenizer
    from redraft.server.text import TextTokenizer

    tokenizer = TextTokenizer.from_folder(target or Path())
    if tokenizer.chat_template is None:
        raise RedraftError(f"{target} has no chat template; give --prompts a .json file of token ids")
    texts = [turns[0] for turns in read_prompts(path).conversations]
    rendered = [tokenizer.chat_template.render([{"role": "user", "content": text}]) for text in texts]
    return [list(tokenizer.encode(text, special_tokens=False)) for text in rendered]


def _is_ids(prompt: object) -> bool:
    return isinstance(prompt, list) and bool(prompt) and all(isinstance(token, int) for token in prompt)
