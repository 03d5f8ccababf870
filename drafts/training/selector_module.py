"""A draft's selector as trainable tables (drafts/selector.py)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from redraft.drafts.dflash_config import DFlashConfig


class CandidateSelector(nn.Module):
    """Adds to logits what the token before makes of them; changes nothing before it was trained."""

    def __init__(self, config: DFlashConfig) -> None:
        super().__init__()
        self.predecessor_codebook = nn.Embedding(config.tokens, config.selector_rank)
        self.successor_codebook = nn.Embedding(config.tokens, config.selector_rank)
        nn.init.normal_(self.predecessor_codebook.weight, std=config.selector_rank**-0.5)
        nn.init.zeros_(self.successor_codebook.weight)
        # trained by a run of its own (selector.py); gradients of zero, which several processes sum, would decay it
        self.requires_grad_(False)

    def forward(self, before: Tensor, after: Tensor, kept: Tensor) -> Tensor:
        """[..., K] for candidates ``after`` [..., K] behind ``before`` [...], both rows of the draft's head.

        ``kept`` [..., r] is what dropout leaves of the numbers of ``before``.
        """
        known = self.predecessor_codebook(before) * kept
        leaning: Tensor = torch.linalg.vecdot(self.successor_codebook(after), known.unsqueeze(-2))
        return leaning

    def pairs(self, candidates: Tensor) -> Tensor:
        """[N, D - 1, K, K] for every candidate behind each one of the depth before; ``candidates`` [N, D, K]."""
        before, after = self.predecessor_codebook(candidates[:, :-1]), self.successor_codebook(candidates[:, 1:])
        with torch.autocast(before.device.type, enabled=False):  # in fp32, as it is served
            paired: Tensor = before @ after.mT
        return paired
