"""What steps and rounds must take, before they are measured: their bytes at a copy's speed, and their launches.

Bytes follow from shapes (traffic.py) and launches are counted on tensors without contents (launches.py), which needs
Triton, but no GPU.  So everything here is known without running anything.  Two things are not, and are said where they
are used: how many tokens a round commits, which depends on texts and draft, and what another system launches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from redraft.benchmarks.launches import NODES, launches_of
from redraft.benchmarks.traffic import LAUNCH_SECONDS, Traffic, draft_pass, lookup, moved, target_pass
from redraft.drafts.dflash_config import DFlashConfig
from redraft.server.engine.rows_plan import row_bucket
from redraft.server.engine.target.spec import TargetSpec

PRODUCTS_AND_ATTENTION = ("kernels.matmul", "kernels.chunk_attention", "kernels.sum_chunks", "kernels.rms_norm")
"""Modules that launch them.  A layer's norms are inside its products up to 64 rows and are taken for part of them
beyond; attention's list of items is not taken for part of it."""
ROWS_WITH_NORMS = 64
"""Rows up to which a layer's norms are inside its products (matmul.py)."""
READ_BACK = {False: 2, True: 3}
"""Launches that an engine adds to a round on its own: putting what was committed together and copying it to the host;
and the trees' scores, where a draft made some, as fp64."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Of a step or round."""

    traffic: Traffic
    by_module: Mapping[str, int] | None
    """Launches; None where they cannot be counted."""
    further: int = 0
    """Launches beside the round's own."""

    @property
    def launches(self) -> int | None:
        return None if self.by_module is None else sum(self.by_module.values()) + self.further

    def seconds(self, bytes_per_second: float) -> float | None:
        """At ``bytes_per_second`` of a copy."""
        if self.launches is None:
            return None
        return self.traffic.seconds(bytes_per_second) + self.launches * LAUNCH_SECONDS

    def rest_seconds(self, bytes_per_second: float) -> float | None:
        """What is neither product nor attention."""
        if self.by_module is None:
            return None
        counted = sum(count for name, count in self.by_module.items() if name not in PRODUCTS_AND_ATTENTION)
        return self.traffic.rest / bytes_per_second + (counted + self.further) * LAUNCH_SECONDS


def predicted_step(
    spec: TargetSpec,
    requests: int,
    rows: int,
    context: int,
    itemsize: int,
    *,
    bound: int | None = None,
    read_back: bool = False,
) -> Prediction:
    """``requests`` texts of ``context`` tokens with ``rows`` rows each, of trees that are given; 1 is plain decoding.

    ``bound``: of the contexts, as the host knows them; ``read_back``: as an engine runs it.
    """
    return Prediction(
        target_pass(spec, row_bucket(requests * rows), [context] * requests, itemsize),
        launches_of(spec, requests=requests, rows=rows, lookup=False, context=bound or context),
        READ_BACK[False] if read_back else 0,
    )


def predicted_round(
    spec: TargetSpec,
    draft: DFlashConfig | None,
    requests: int,
    rows: int,
    context: int,
    itemsize: int,
    *,
    nodes: int = NODES,
    with_lookup: bool = True,
    accepted: float = 0.0,
    bound: int | None = None,
    read_back: bool = False,
) -> Prediction:
    """The same with a DFlash draft and n-gram lookup, or either, of ``nodes`` nodes each.

    ``accepted``: nodes of a round whose keys and values move; at most, for those in their place stay there.
    """
    contexts, verified = [context] * requests, row_bucket(requests * rows)
    traffic = target_pass(spec, verified, contexts, itemsize)
    kv_bytes = spec.kv_bytes(itemsize)
    if draft is not None:
        traffic += draft_pass(draft, verified, contexts, itemsize)
        kv_bytes += 2 * draft.layers * draft.kv_width * itemsize
    if with_lookup:
        traffic += lookup(contexts)
    return Prediction(
        traffic + moved(kv_bytes, round(accepted * requests)),
        launches_of(spec, draft, requests, rows, nodes, with_lookup, bound or context),
        READ_BACK[True] if read_back else 0,
    )


def predicted_prefill(spec: TargetSpec, tokens: int, itemsize: int) -> Prediction:
    """One pass over a prompt of ``tokens`` tokens, by its bytes; of long ones the arithmetic takes longer.

    Launches are those of a plain step, with norms of their own above 64 rows; that attention may take more than two
    launches a layer over many rows is left out.
    """
    launches = launches_of(spec, context=max(tokens, 1))
    if launches is not None and tokens > ROWS_WITH_NORMS:
        launches = {**launches, "kernels.rms_norm": 2 * spec.layers}
    return Prediction(target_pass(spec, row_bucket(tokens), [0], itemsize), launches)
