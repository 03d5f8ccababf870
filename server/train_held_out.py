"""Texts on which a draft is measured: set apart from those it is trained on, and compared with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from redraft.drafts.dflash_config import DraftError
from redraft.drafts.training.data import Text
from redraft.drafts.training.run import Run
from redraft.server.engine.progress import say

TOKENS = 128
"""Of each answer on which τ is measured."""
CLEARLY_KNOWN = 1.1
"""τ on texts of the training over τ on others, from which on a draft is short of texts (docs/training.md)."""


def development(texts: Sequence[Text], limit: int, tokens: int = TOKENS) -> list[Text]:
    """The greedy ones of ``texts``, cut to ``tokens`` of an answer, as many of every source as ``limit`` gives it."""
    greedy = [t for t in texts if t.temperature == 0]
    sources = sorted({t.source for t in greedy})
    if not greedy:
        raise DraftError("the development file has no answer at temperature 0, on which to measure acceptance")
    each = -(-limit // len(sources))
    chosen = [t for source in sources for t in [t for t in greedy if t.source == source][:each]]
    return [Text(t.tokens[: t.prompt + tokens], t.prompt, t.source) for t in chosen]


def keep_apart(texts: Sequence[Text], held_out: Sequence[Text]) -> None:
    """Refuse to measure on what is trained on."""
    trained = {text.tokens[: text.prompt] for text in texts}
    shared = sum(text.tokens[: text.prompt] in trained for text in held_out)
    if shared:
        raise DraftError(f"{shared} development prompts are also in the training data; take them out of one of the two")


def known_tau(run: Run) -> float | None:
    """τ on answers that were trained on, like the held-out ones; None where training had none like these."""
    alike = like(run.texts, run.dev)
    if not alike or run.progress.tau is None:
        return None
    known, held_out = run.measure(alike).tau, run.progress.tau
    more = "; it knows these by heart: more texts would help" if known > CLEARLY_KNOWN * held_out else ""
    say(f"τ {held_out:.3f} on held-out answers, {known:.3f} on as many that were trained on{more}")
    return known


def like(texts: Sequence[Text], held_out: Sequence[Text]) -> list[Text]:
    """Of ``texts`` the first greedy ones, as many of every source and as long as ``held_out`` has them."""
    longest = max((len(text.anchors) for text in held_out), default=0)
    wanted, found = Counter(text.source for text in held_out), list[Text]()
    for text in texts:
        if text.temperature == 0 and wanted[text.source] > 0:
            wanted[text.source] -= 1
            found.append(Text(text.tokens[: text.prompt + longest], text.prompt, text.source))
    return found
