"""The engine's state on the device: everything a round reads and writes, allocated once.

Only ``admit``, ``activate``, ``release`` and the like write from the host, and only values the host knows (prompts,
limits, parameters, pages, what to prefill); what rounds commit stays on the device until it is read back.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many

import numpy as np
import torch
from torch import Tensor

from redraft.drafts.base import NO_CONTEXT, Context, DraftState
from redraft.kernels.sample import SamplingTable
from redraft.server.engine.adjusting import Adjusting
from redraft.server.engine.config import PAGE
from redraft.server.engine.mask_table import MaskTable
from redraft.server.engine.prefill_table import PrefillTable
from redraft.server.engine.rows_plan import round_room
from redraft.server.engine.sequence import Sequence
from redraft.server.engine.staging import staged
from redraft.server.engine.target.spec import TargetSpec


class DeviceState:
    """Tables of S slots and one trash slot (the last), and the KV cache."""

    def __init__(
        self,
        spec: TargetSpec,
        device: torch.device,
        kv_dtype: torch.dtype,
        *,
        slots: int,
        pages: int,
        max_model_len: int,
        tree_rows: int,
        prefill: int = 0,
        context: Context = NO_CONTEXT,
        forced: int = 0,
    ) -> None:
        """``prefill``: most rows of prefill in a pass; ``forced``: most tokens that a grammar may draft in a round."""
        self.slots = slots
        self.device = device

        def table(dtype: torch.dtype, *width: int) -> Tensor:
            return torch.zeros(slots + 1, *width, dtype=dtype, device=device)

        self.positions = max_model_len + tree_rows
        """Bound of any row's position."""
        self.tokens = table(torch.int64, self.positions)
        """[S+1, T] prompt and committed tokens, with room for a whole tree behind the longest request."""
        self.length = table(torch.int64)
        """[S+1] committed tokens, the anchor included."""
        self.limit = table(torch.int64)
        self.active = table(torch.bool)
        """[S+1] takes part in rounds: prefilled and not finished."""
        self.page_table = table(torch.int64, -(-(max_model_len + tree_rows) // PAGE))
        self.sampling = SamplingTable(
            temperature=table(torch.float32),
            top_p=table(torch.float32),
            min_p=table(torch.float32),
            top_k=table(torch.int64),
            seed=table(torch.int64),
        )
        self.most_nodes = table(torch.int64)
        """[S+1] most drafted nodes that a request may have verified in a round."""
        self.trust = table(torch.float32)
        """[S+1] what a draft's scores are multiplied with, so that those of several requests can be compared."""
        self.asked = torch.full((slots + 1,), slots, device=device)
        """[S+1] int64, the slots that want log-probabilities of the next round, first; behind them the trash slot."""
        self.forced = torch.full((slots + 1, forced), -1, device=device)
        """[S+1, F] int64 tokens about which a grammar leaves no choice, -1 behind them."""
        self.masks = MaskTable(round_room(slots * tree_rows, prefill, slots * forced), spec.vocab, device)
        """What grammars allow after the round's rows; written while the target's pass runs."""
        self.prefill = PrefillTable(slots, prefill, device)
        """What the next pass prefills."""
        self.eos = tuple(token for token in spec.eos_token_ids if 0 <= token < spec.vocab)
        """The target's own end tokens."""
        self.adjusting = Adjusting(slots, spec.vocab, len(self.eos), device)
        shape = (spec.layers, 2, (pages + 1) * PAGE, spec.kv_heads, spec.head_dim)
        self.kv = _zeros(shape, kv_dtype, device)
        """[L, 2, cells, HKV, HD]; a page is zeroed before it goes to another request: a masked lane weighs 0, but 0
        times a stale NaN would be NaN."""
        draft_shape = (context.layers, 2, shape[2], context.kv_heads, context.head_dim)
        self.draft_kv = _zeros(draft_shape, kv_dtype, device)
        """[D, 2, cells, HKV, HD] of the draft, in the same cells and as clean."""
        self._written: set[int] = set()
        """Pages that were handed out before."""

    @property
    def draft(self) -> DraftState:
        """What a drafter gets to see."""
        return DraftState(self.tokens, self.length, self.active, self.page_table, self.draft_kv, self.sampling)

    def admit(self, sequence: Sequence, nodes: int) -> None:
        """Write a request's text, parameters and pages into its slot; it stays inactive until it is prefilled.

        ``nodes``: most drafted nodes that it may have verified in a round.
        """
        slot, params = sequence.running_slot, sequence.request.params
        text = staged(sequence.tokens, torch.int64, self.device)
        self.tokens[slot, : len(text)].copy_(text, non_blocking=True)
        self.length[slot] = len(text)
        self.limit[slot] = sequence.limit
        self.sampling.temperature[slot] = params.temperature
        self.sampling.top_p[slot] = params.top_p
        self.sampling.min_p[slot] = params.min_p
        self.sampling.top_k[slot] = params.top_k
        self.sampling.seed[slot] = signed64(params.seed)
        self.adjusting.admit(sequence, self.eos)
        if sequence.matcher is not None:
            self.masks.reserve()
        self.most_nodes[slot] = nodes
        self.trust[slot] = 1.0
        self.give_pages(sequence, sequence.computed // PAGE)

    def give_pages(self, sequence: Sequence, fresh: int) -> None:
        """Enter a sequence's pages; those from number ``fresh`` on were another's and are zeroed."""
        slot = sequence.running_slot
        for page in sequence.pages[fresh:]:
            if page in self._written:
                for kv in (self.kv, self.draft_kv):
                    kv[:, :, page * PAGE : (page + 1) * PAGE] = 0
            self._written.add(page)
        pages = staged(sequence.pages, torch.int64, self.device)
        self.page_table[slot, : len(pages)].copy_(pages, non_blocking=True)

    def set_trust(self, trust: Mapping[int, float]) -> None:
        """What drafts' scores are multiplied with, by slot; in others 1."""
        values = [trust.get(slot, 1.0) for slot in range(self.slots + 1)]
        self.trust.copy_(staged(values, torch.float32, self.device), non_blocking=True)

    def set_asked(self, slots: Many[int]) -> None:
        """Who wants log-probabilities of the next round."""
        values = [*slots, *[self.slots] * (self.slots + 1 - len(slots))]
        self.asked.copy_(staged(values, torch.int64, self.device), non_blocking=True)

    def set_forced(self, tokens: Mapping[int, Many[int]]) -> None:
        """What grammars leave no choice about in the next round, by slot."""
        width = self.forced.shape[1]
        each = (tokens.get(slot, ()) for slot in range(self.slots + 1))
        values = [token for own in each for token in (*own, *[-1] * (width - len(own)))]
        self.forced.view(-1).copy_(staged(values, torch.int64, self.device), non_blocking=True)

    def activate(self, slot: int) -> None:
        self.active[slot] = True

    def release(self, slot: int) -> None:
        """Take a slot out of rounds; its pages may be another's from now on."""
        self.active[slot] = False
        self.page_table[slot] = 0


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that a CPU maps when they are first touched: a long context costs nothing until it is used."""
    if device.type == "cpu" and dtype == torch.float32:
        return torch.from_numpy(np.zeros(shape, dtype=np.float32))
    return torch.zeros(shape, dtype=dtype, device=device)


def signed64(seed: int) -> int:
    """The signed reading of a 64-bit seed."""
    seed &= 2**64 - 1
    return seed - 2**64 if seed >= 2**63 else seed
