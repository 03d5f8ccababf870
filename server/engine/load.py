"""Build an engine from a config: device, dtype, weights, drafter, memory, self-check."""

from __future__ import annotations

import hashlib
import sys
from functools import partial
from pathlib import Path

import torch

from redraft.drafts.base import Drafter
from redraft.kernels import linear
from redraft.kernels.attention import block_attention, cpu_attention
from redraft.kernels.pack_tree import MAX_NODES
from redraft.kernels.tree_attention import CHUNK
from redraft.kernels.triton_support import HAS_TRITON
from redraft.server.engine import dry_run, rows_plan
from redraft.server.engine.config import PAGE, EngineConfig
from redraft.server.engine.costs import Costs
from redraft.server.engine.draft_choice import DraftChoice, choose_draft
from redraft.server.engine.engine import Engine
from redraft.server.engine.grammar import Grammars
from redraft.server.engine.hardware import architecture, available_bytes, choose_device, choose_dtype, machine
from redraft.server.engine.measure_costs import Measurement, cost_table
from redraft.server.engine.pace import LEAST_PREFILL, Pacer
from redraft.server.engine.recording import cuda_recorder
from redraft.server.engine.scheduler import Scheduler
from redraft.server.engine.self_check import differences, report
from redraft.server.engine.sizing import fit
from redraft.server.engine.state import DeviceState
from redraft.server.engine.target.decoder import Target
from redraft.server.engine.target.spec import read_spec
from redraft.server.engine.target.weights import head_tensor, load_weights
from redraft.server.engine.types import EngineInfo, RedraftError

KERNELS = "3"
"""Raised whenever a change to the kernels or their configuration can change a bit of the output."""

TAKEN: dict[str, dry_run.Taken] = {"cuda": dry_run.cuda_taken}
"""Where memory that passes take is measured."""
MAX_ROWS = {"cpu": 128, "cuda": 2048}
"""Rows of a pass where nothing else is asked for: on a CPU those at which a row is cheapest (docs/log.md)."""


MOST_FORCED = 16
"""Tokens about which a grammar leaves no choice that are drafted in a round, at most."""


def build_engine(config: EngineConfig, drafter: Drafter | None = None) -> Engine:
    """Load everything ``config`` names; ``RedraftError`` says what cannot be had.  ``drafter`` overrides (tests)."""
    if PAGE != CHUNK or rows_plan.MIN_ROWS < linear.MIN_ROWS:
        raise RedraftError(f"pages of {PAGE} cells do not match attention chunks of {CHUNK}, or passes products")
    device, why_device = choose_device(config.device)
    dtype, why_dtype = choose_dtype(config.dtype, device)
    folder = Path(config.target)
    spec = read_spec(folder)
    most_rows = _most_rows(config, device)
    choice = _given(drafter) if drafter else choose_draft(config, spec, device)
    # on a CPU the products of attention run in fp32, and converting cached values would cost more than their memory
    kv_dtype = torch.float32 if device.type == "cpu" else dtype
    forced = min(MOST_FORCED, MAX_NODES - 1 - choice.candidates) if choice.candidates else 0
    tree_rows = max(choice.candidates + 1, choice.context.reach) + forced
    fitting = partial(
        fit,
        spec,
        choice.context,
        weight_itemsize=dtype.itemsize,
        kv_itemsize=kv_dtype.itemsize,
        available=available_bytes(device, config.gpu_memory_utilization),
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        tree_rows=tree_rows,
        pages=config.kv_pages,
    )
    # what does not fit is refused before anything is loaded
    sizes = fitting()
    make_state = partial(
        DeviceState,
        spec,
        device,
        kv_dtype,
        slots=config.max_num_seqs,
        tree_rows=tree_rows,
        prefill=rows_plan.prefill_room(most_rows),
        context=choice.context,
        forced=forced,
    )
    make_recorder = cuda_recorder if device.type == "cuda" and config.cuda_graphs else None
    recorded = rows_plan.recorded_rows(most_rows, spec.parameters) if make_recorder else 0
    with torch.inference_mode():
        weights = load_weights(folder, spec, device, dtype)
        positions = sizes.max_model_len + tree_rows
        target = Target(spec, weights, positions)
        drafter = choice.make(weights.embedding, lambda: head_tensor(folder, spec, weights), positions)
        make_attention = cpu_attention if device.type == "cpu" else block_attention
        kernels = target.ops.name
        if device.type == "cuda":
            kernels += f", attention in {'Triton' if HAS_TRITON else 'torch'}"
        if taken := TAKEN.get(device.type):
            small = make_state(pages=dry_run.PAGES, max_model_len=sizes.max_model_len)
            needed = dry_run.workspace(
                small, target, drafter, make_attention, most_rows, recorded=recorded, taken=taken
            )
            del small
            sizes = fitting(workspace=needed)
        state = make_state(pages=sizes.pages, max_model_len=sizes.max_model_len)
        notes = [why_device, why_dtype, choice.why, f"kernels: {kernels}"]
        differing = differences(target, make_attention) if config.self_check else []
        notes.append(report(differing) if config.self_check else "self-check: left out")
        costs = None
        if config.measure_costs:
            launched = "op by op" if make_recorder is None else "by graph"
            made_of = (config.target_sha, dtype, KERNELS, kernels, machine(device), torch.__version__, launched)
            measurement = Measurement(state, target, drafter, make_attention, make_recorder)
            table, source = cost_table(measurement, most_rows, "|".join(map(str, made_of)))
            notes.append(f"costs of passes: {source}")
            costs = Costs(table)
    notes.append(
        f"room: {sizes.max_model_len} tokens a request, {config.max_num_seqs} requests, "
        f"{sizes.pages * PAGE} tokens of KV"
    )
    info = EngineInfo(
        target=config.target_name,
        draft=f"{drafter.name}-{drafter.version}" if choice.nodes else drafter.name,
        device=device.type,
        dtype={torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype],
        vocab_size=spec.vocab,
        max_model_len=sizes.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_nodes=choice.nodes,
        eos_token_ids=spec.eos_token_ids,
        fingerprint=fingerprint(config.target_sha, dtype, device, kernels) + ("-inexact" if differing else ""),
        notes=tuple(notes),
    )
    scheduler = Scheduler(config.max_num_seqs, sizes.pages, sizes.max_model_len, tree_rows, reuse=config.prefix_caching)
    most_nodes = choice.candidates if config.max_nodes is None else choice.nodes
    pacer = Pacer(most_rows, most_nodes, config.speculation, costs, recorded)
    grammars = Grammars(folder / "tokenizer.json", spec.vocab, state.eos)
    return Engine(info, target, drafter, state, scheduler, make_attention, pacer, grammars, make_recorder)


def _most_rows(config: EngineConfig, device: torch.device) -> int:
    """Rows of a pass; a root for everybody and prefill beside it must have room."""
    least = config.max_num_seqs + LEAST_PREFILL
    asked = config.max_num_batched_tokens
    if asked is not None and asked < least:
        raise RedraftError(
            f"--max-num-batched-tokens must be at least {least} for {config.max_num_seqs} requests, not {asked}"
        )
    return max(MAX_ROWS[device.type], least) if asked is None else asked


def _given(drafter: Drafter) -> DraftChoice:
    """A test's own drafter."""
    nodes = drafter.max_nodes
    return DraftChoice(f"draft: {drafter.name}", nodes, nodes, lambda *_: drafter, drafter.context)


def fingerprint(sha: str, dtype: torch.dtype, device: torch.device, kernels: str) -> str:
    """Names the class within which the same request and seed give the same tokens (design: promise 1)."""
    parts = (sha, str(dtype), KERNELS, kernels, architecture(device), torch.__version__, sys.platform)
    return "fp_" + hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]
