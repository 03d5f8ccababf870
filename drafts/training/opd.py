"""Draft-OPD (arXiv 2605.29343): on-policy distillation of a draft on its own rounds: ``redraft train opd``.

Every step the current draft proposes at all anchors of the step's texts; walking them gives the rounds that decoding
would have had (rounds.py).  Their blocks are drafted again with gradients: accepted rows learn by forward KL, rejected
ones by reverse KL, which decays along the block.  Both are normalised over the whole step.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from redraft.drafts.training.blocks import make_batch
from redraft.drafts.training.data import Text
from redraft.drafts.training.dflash_run import DFlashRun
from redraft.drafts.training.divergence import Form, Kl, Overlap, Scalar, divergence, teacher_rows
from redraft.drafts.training.flops import Flops, draft_pass, draft_training, head_rows
from redraft.drafts.training.opd_settings import OpdSettings
from redraft.drafts.training.rounds import Rounds, propose, walk
from redraft.drafts.training.run import Made, Run
from redraft.drafts.training.streams import Streams, make_streams
from redraft.drafts.training.teacher import States


@dataclass(frozen=True, slots=True)
class Plan:
    """What is taught of one text in this step."""

    text: Text
    states: States
    rounds: Rounds
    streams: Streams
    tokens: int
    """Of the answer; divided by decoding's rounds, the acceptance length."""
    decoded: int
    """Rounds that decoding would have had."""


@dataclass(frozen=True, slots=True)
class Shares:
    """What a row's weight is multiplied with, so that the step's loss is normalised."""

    accepted: float
    rejected: float
    blocks: float


@dataclass(frozen=True, slots=True)
class Packed:
    """Rounds of b texts, drafted again with gradients: A rounds, K rows each."""

    hidden: Tensor
    """[b, A, K, H] normed states, in the dtype of the head."""
    label: Tensor
    """[b, A, K] int64 rows of the draft's head, the text's tokens; ``IGNORE`` where there is none."""
    final: Tensor
    """[P, H] the target's states after tokens of the text."""
    teacher_row: Tensor
    """[b, A, K] int64, the row of ``final`` that predicts the label."""
    draft: int
    """Operations of the draft, gradients included, heads not."""


@dataclass
class OnPolicy(Run):
    """Rounds where the draft itself drafted, rows by what became of them; of any kind of draft."""

    settings: OpdSettings
    ends: tuple[int, ...] = ()
    """Tokens that end a text."""
    method = "draft-opd"

    @abstractmethod
    def proposed(self, texts: Sequence[Text], states: Sequence[States]) -> tuple[list[Rounds], list[Flops]]:
        """What the draft proposes at all anchors of ``texts``, and what it costs."""

    @abstractmethod
    def drafted_again(self, plans: Sequence[Plan]) -> Packed:
        """The rounds of ``plans`` in one pass."""

    @abstractmethod
    def differing(self, hidden: Tensor, final: Tensor, row: Tensor, form: Form) -> tuple[Tensor, Flops]:
        """``form`` of rows [N, H] and their teachers, [N] with gradients, and what both passes cost."""

    def teach(self, texts: Sequence[Text], generator: torch.Generator) -> Made:
        """``loss`` is the objective of the whole step."""
        plans, spent = self._plans(texts, generator)
        shares = self._shares(plans)
        sums = torch.zeros(3, device=self.teacher.embedding.device)
        for start in range(0, len(plans), self.settings.micro_batch):
            made, cost = self._pass(plans[start : start + self.settings.micro_batch], shares)
            made[0].backward()  # type: ignore[no-untyped-call]
            sums += made.detach()
            spent += cost
        self.together.sum_([sums])
        rounds, tokens, taught = self.together.total(
            sum(plan.decoded for plan in plans),
            sum(plan.tokens for plan in plans),
            sum(int(plan.streams.taught.sum()) for plan in plans),
        )
        figures = {
            "rounds": rounds,
            "train_tau": tokens / max(rounds, 1),
            "accepted": sums[1].item(),
            "rejected": sums[2].item(),
        }
        return Made(sums[0], int(taught), spent, figures)

    def _plans(self, texts: Sequence[Text], generator: torch.Generator) -> tuple[list[Plan], Flops]:
        """The rounds of this process's share of ``texts``, with the weights as they are."""
        settings, spent, share = self.settings, Flops(), self.together.share
        orders: list[Tensor | None] = [None] * len(texts)
        if settings.anchors == "random":
            orders = [torch.randperm(len(text.anchors), generator=generator) for text in texts]
        texts, orders = share(texts), list(share(orders))
        if not texts:
            return [], spent
        states, read = zip(*(self.states(text) for text in texts), strict=True)
        proposed, costs = self.proposed(texts, states)
        costs, plans = list(map(Flops.__add__, read, costs)), []
        for text, mine, everywhere, order, cost in zip(texts, states, proposed, orders, costs, strict=True):
            visited = decoded = walk(everywhere.accepted.tolist())
            if order is not None:
                visited = order[: len(decoded)].sort().values.tolist()
            rounds = everywhere.at(visited)
            streams = make_streams(rounds, settings, self.ends)
            plans.append(Plan(text, mine, rounds, streams, len(text.anchors), len(decoded)))
            spent += cost
        return plans, spent

    def _shares(self, plans: Sequence[Plan]) -> Shares:
        """Of the whole step.  An empty stream has no mean and is left out of the mean of means."""
        settings = self.settings
        accepted, rejected, blocks = self.together.total(
            sum(plan.streams.accepted.sum().item() for plan in plans),
            sum(plan.streams.rejected.sum().item() for plan in plans),
            sum(int(plan.streams.taught[:, 0].sum()) for plan in plans),
        )
        weights = (settings.accepted_weight * (accepted > 0), settings.rejected_weight * (rejected > 0))
        if settings.aggregate == "pooled":
            total = max(weights[0] * accepted + weights[1] * rejected, 1e-9)
            return Shares(weights[0] / total, weights[1] / total, 1 / max(blocks, 1))
        total = max(sum(weights), 1e-9)
        return Shares(
            weights[0] / total / max(accepted, 1e-9), weights[1] / total / max(rejected, 1e-9), 1 / max(blocks, 1)
        )

    def _pass(self, plans: Sequence[Plan], shares: Shares) -> tuple[Tensor, Flops]:
        """Loss of some texts, and of its accepted and its other rows, [3]."""
        packed = self.drafted_again(plans)
        accepted, rejected, suffix = (
            torch.stack(parts).to(packed.label.device)
            for parts in zip(*(plan.streams.padded(packed.label.shape[1]) for plan in plans), strict=True)
        )
        final, row, spent = self._teachers(plans, packed, suffix)
        taught = (accepted > 0) | (rejected > 0)
        taken = taught.flatten().nonzero().squeeze(1)
        flat, rows = packed.hidden.flatten(0, 2)[taken], row.flatten()[taken]
        weigh = (accepted * shares.accepted).flatten()[taken], (rejected * shares.rejected).flatten()[taken]
        spent += Flops(draft=packed.draft)
        if self.settings.loss == "tv":
            value, cost = self.differing(flat, final, rows, Overlap())
            overlap = torch.zeros_like(taught, dtype=torch.float32).flatten().index_copy(0, taken, value)
            loss = (_expected_loss(overlap.view_as(taught), taught) * shares.blocks).sum()
            return torch.stack((loss, loss.detach() * 0, loss.detach() * 0)), spent + cost
        value, cost = self.differing(flat, final, rows, self._form(plans, packed, weigh, taken))
        of_accepted = (accepted.flatten()[taken] > 0) & (rejected.flatten()[taken] == 0)
        return torch.stack((value.sum(), value[of_accepted].sum(), value[~of_accepted].sum())), spent + cost

    def _teachers(self, plans: Sequence[Plan], packed: Packed, suffix: Tensor) -> tuple[Tensor, Tensor, Flops]:
        """The target's states [P, H], which of them predicts each row, and what reading branches cost."""
        made, spent = [packed.final], Flops()
        asking = [plan for plan in plans if plan.streams.branches]
        if asking:
            read = self.teacher.behind(
                [plan.text.tokens for plan in asking], [plan.streams.branches for plan in asking]
            )
            made += [states.to(packed.final) for states in read]
            for plan, states in zip(asking, read, strict=True):
                spent += Flops(target=self.teacher.flops(len(plan.text.tokens), len(states)))
        # the branches' states lie in the order of the rows they teach
        number = len(packed.final) + suffix.flatten().long().cumsum(0).view_as(suffix) - 1
        return torch.cat(made), torch.where(suffix, number, packed.teacher_row), spent

    def _form(self, plans: Sequence[Plan], packed: Packed, weigh: tuple[Tensor, Tensor], taken: Tensor) -> Form:
        """The objective of rows ``taken`` with normalised weights of both streams."""
        settings, (accepted, rejected) = self.settings, weigh
        label = packed.label.flatten()[taken].clamp_min(0)
        if settings.loss == "scalar":
            width = packed.label.shape[1]
            own = [functional.pad(plan.rounds.drafted, (0, 0, 0, width - len(plan.rounds.drafted))) for plan in plans]
            drafted = self.vocabulary.row[torch.stack(own).to(label.device).flatten()[taken]].clamp_min(0)
            return Scalar(accepted, rejected, label, drafted)
        greedy = torch.tensor([plan.text.temperature == 0 for plan in plans], device=label.device)
        greedy = greedy[:, None, None].expand_as(packed.label).flatten()[taken]
        hard = settings.hard * accepted * greedy
        soft = accepted - hard
        nothing = torch.zeros_like(accepted)
        forward, reverse = nothing, nothing
        for weight, way in ((soft, settings.accepted_kl), (rejected, settings.rejected_kl)):
            if way == "forward":
                forward = forward + weight
            else:
                reverse = reverse + weight
        return Kl(forward, reverse, hard, label)


@dataclass
class Opd(OnPolicy, DFlashRun):
    """Blocks."""

    def proposed(self, texts: Sequence[Text], states: Sequence[States]) -> tuple[list[Rounds], list[Flops]]:
        """Blocks, or trees of them, decide the rounds."""
        with self.mixed():
            rounds = propose(
                self.module, self.teacher, self.vocabulary, self.rope, texts, states, self.settings.tree_nodes
            )
        costs = [
            Flops(
                draft=draft_pass(self.config, len(text.tokens), len(text.anchors)),
                head=head_rows(self.config, len(text.anchors) * self.config.drafted),
            )
            for text in texts
        ]
        return rounds, costs

    def drafted_again(self, plans: Sequence[Plan]) -> Packed:
        """As in SFT, at other anchors."""
        texts, states = [plan.text for plan in plans], [plan.states for plan in plans]
        anchors = [plan.rounds.anchor.tolist() for plan in plans]
        batch = make_batch(self.config, self.teacher, self.vocabulary, texts, states, anchors)
        with self.mixed():
            hidden = self.module(batch.taps, batch.anchor, batch.block, self.rope)
        spent = len(plans) * draft_training(self.config, batch.taps.shape[1], batch.anchor.shape[1])
        return Packed(hidden.to(self.vocabulary.head.dtype), batch.label, batch.final, batch.teacher_row, spent)

    def differing(self, hidden: Tensor, final: Tensor, row: Tensor, form: Form) -> tuple[Tensor, Flops]:
        """The head is the target's, frozen."""
        cost = head_rows(self.config, len(row), 2) + head_rows(self.config, teacher_rows(row))
        return divergence(hidden, self.vocabulary.head, final, row, form), Flops(head=cost)


def _expected_loss(overlap: Tensor, taught: Tensor) -> Tensor:
    """1 - expected accepted rows / rows of every block [..., B - 1] (end-to-end TV); 0 for a block without rows.

    A row counts as long as all before it are taught.
    """
    valid = taught.long().cumprod(-1)
    rows = valid.sum(-1)
    reached = (overlap * valid).cumprod(-1).sum(-1)
    return torch.where(rows > 0, 1 - reached / rows.clamp_min(1), 0.0)
