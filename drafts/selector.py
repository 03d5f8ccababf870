"""Which of a depth's candidates follows which of the depth before: corrects the marginals of a block draft.

A block draft guesses every depth by itself, so its best tokens of two depths need not go together.  A low-rank table
adds ``predecessor[p] . successor[c]`` to the logit of candidate c behind candidate p, as DSpark's Markov head
(arXiv 2607.05147) and DFlash2's path selector do; like the latter it looks at few candidates of every depth.  The first
depth is left alone: the anchor before it is known to the block.

The candidates of a depth share what the draft gave to all of them together, so what a path is worth stays comparable
with other paths, depths and texts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from redraft.drafts.checkpoint import Checkpoint
from redraft.drafts.dflash_config import DFlashConfig


class Selector:
    """Of one draft, on its device, in fp32."""

    def __init__(self, predecessor: Tensor, successor: Tensor, ids: Tensor | None, vocab: int) -> None:
        """``predecessor``, ``successor`` [V', r]; ``ids`` [V'] the target's ids of the draft's tokens, None for all.

        Tokens that the draft does not have, of a text's own (own_tokens.py), change nothing and follow anything.
        """
        # the row behind the last is theirs
        self.predecessor, self.successor = (functional.pad(t.float(), (0, 0, 0, 1)) for t in (predecessor, successor))
        self.row: Tensor | None = None
        if ids is not None:
            every = torch.full((vocab,), len(ids), device=predecessor.device)
            self.row = every.index_put((ids,), torch.arange(len(ids), device=ids.device))

    @classmethod
    def of(cls, checkpoint: Checkpoint, device: torch.device) -> Selector:
        """That of ``checkpoint``, which has one."""
        ids, tensors = checkpoint.vocabulary, checkpoint.tensors
        names = (f"candidate_selector.{end}_codebook.weight" for end in ("predecessor", "successor"))
        predecessor, successor = (tensors[name].to(device) for name in names)
        vocab = checkpoint.config_as(DFlashConfig).vocab
        return cls(predecessor, successor, None if ids is None else ids.to(device), vocab)

    def __call__(self, token: Tensor, log_probability: Tensor, scale: Tensor) -> Tensor:
        """[N, D, K, K] log-probabilities of every candidate behind each one of the depth before.

        ``token``, ``log_probability`` [N, D, K] are the candidates, ``scale`` [D] what logits were divided by.
        """
        row = token if self.row is None else self.row[token]
        before, after = self.predecessor[row[:, :-1]], self.successor[row[:, 1:]]
        return conditional(before @ after.mT, log_probability, scale)


def conditional(bias: Tensor, log_probability: Tensor, scale: Tensor) -> Tensor:
    """[N, D, K, K] as ``Selector`` has it, from ``bias`` [N, D - 1, K, K] on logits of depths 2 and up."""
    first, later = log_probability[:, :1], log_probability[:, 1:]
    together = later.logsumexp(-1)[..., None, None]
    leaning = (later.unsqueeze(2) + bias / scale[1:, None, None]).log_softmax(-1) + together
    return torch.cat((first.unsqueeze(2).expand(-1, -1, first.shape[2], -1), leaning), 1)


def chosen(token: Tensor, log_probability: Tensor) -> tuple[Tensor, Tensor]:
    """The chain that takes the likeliest candidate behind the one before, [N, D, 1] each.

    ``token`` [N, D, K], ``log_probability`` [N, D, K, K].
    """
    places, values = [], []
    place = torch.zeros_like(token[:, 0, :1])
    for step in log_probability.unbind(1):
        behind = step.gather(1, place.unsqueeze(2).expand(-1, -1, step.shape[2])).squeeze(1)
        value, place = behind.max(1, keepdim=True)
        places.append(place)
        values.append(value)
    return token.gather(2, torch.stack(places, 1)), torch.stack(values, 1)
