"""Compile kernels for GPUs that are not here, and say what they need: ``python -m redraft.kernels.aot [MODULE...]``.

For each module's ``COMPILE_CASES`` and each architecture one line of JSON with registers per thread, bytes of spill
(stack and local memory), bytes of shared memory, by what instructions and in what layouts matrices are multiplied and
numbers added up, and what is atomic.  ptxas and cuobjdump are in Triton's wheel, so this runs on a machine without
CUDA.  Do not set ``TRITON_INTERPRET``: interpreted functions cannot be compiled.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass

from redraft.kernels.triton_support import INTERPRETED, CompileCase

CAPABILITIES = (80, 86, 89, 90, 100, 120)
"""Compute capabilities from Ampere to consumer Blackwell."""


_Words = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What one specialisation of a kernel takes on one architecture."""

    warps: int
    registers: int
    """Per thread."""
    spill: int
    """Bytes of stack and local memory per thread; anything above 0 is a spill."""
    shared: int
    """Bytes of shared memory per program."""
    fused: int
    """Fused multiply-adds in the PTX; a kernel compiled without fusion has none."""
    products: _Words
    """Tensor core instructions in the PTX, each once."""
    orders: _Words
    """Shapes and layouts of every ``tl.dot`` and every reduction, each once: where they agree, so does what is added
    to what, and when."""
    early: _Words
    """What is done to memory before a kernel that is launched early waits for the one before, each once."""
    atomics: _Words
    """Atomic operations in the PTX, each once; one on floats would add in the order in which programs arrive."""


@dataclass(frozen=True, kw_only=True)
class Usage(Compiled):
    """The same of a module's case."""

    module: str
    case: int
    """Index into the module's ``COMPILE_CASES``."""
    kernel: str
    capability: int


def compile_case(case: CompileCase, capability: int) -> Compiled:
    """Compile for one architecture."""
    import triton
    from triton.backends.compiler import GPUTarget

    parameters = case.kernel.params
    signature = {
        one.name: "constexpr" if one.name in case.constexprs else case.signature[one.name] for one in parameters
    }
    # torch aligns its allocations to at least 16 bytes, and the launcher specialises on it where it may
    attributes = {
        (one.num,): [["tt.divisibility", 16]]
        for one in parameters
        if (signature[one.name].startswith("*") and not one.do_not_specialize_on_alignment)
        or (one.name in case.divisible and not one.do_not_specialize)
    }
    source = triton.compiler.ASTSource(case.kernel, signature, dict(case.constexprs), attributes)
    options = {
        "num_warps": case.num_warps,
        "num_stages": case.num_stages,
        "maxnreg": case.maxnreg,
        "enable_fp_fusion": case.enable_fp_fusion,
    }
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kernel.cubin")
        with open(path, "wb") as file:
            file.write(compiled.asm["cubin"])
        tool = triton.knobs.nvidia.cuobjdump.path
        text = subprocess.run([tool, "-res-usage", path], check=True, capture_output=True, text=True).stdout
    usage = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    ptx = compiled.asm["ptx"]
    return Compiled(
        warps=case.num_warps,
        registers=usage["REG"],
        spill=usage["STACK"] + usage["LOCAL"],
        shared=compiled.metadata.shared,
        fused=len(re.findall(r"\bfma\.", ptx)),
        products=_words(r"(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)[\w.]*", ptx),
        orders=_orders(compiled.asm["ttgir"]),
        early=_early(ptx),
        atomics=_words(r"(?:atom|red|multimem)\.[\w.:]*", ptx),
    )


def _words(pattern: str, text: str) -> _Words:
    return tuple(sorted(set(re.findall(rf"\b{pattern}", text))))


def _early(ptx: str) -> _Words:
    before, waits, _ = ptx.partition("griddepcontrol.wait")
    return _words(r"(?:ld|st|atom|red|prefetch|cp)\.(?!param)[\w.]*", before) if waits else ()


def _orders(ttgir: str) -> _Words:
    """Types of dots' and reductions' operands, layouts spelt out."""
    layouts = dict(re.findall(r"^(#\w+) = (#ttg\.[^\n]*)$", ttgir, re.MULTILINE))
    dots = re.findall(r"(tt\.dot) [^:]*: ([^\n]*?) loc", ttgir)
    # a reduction's type stands behind its body
    reductions = re.findall(r'"(tt\.reduce)".*?\}\) : ([^\n]*?) loc', ttgir, re.DOTALL)
    named = {f"{op} {types}" for op, types in dots + reductions}
    return tuple(sorted(re.sub(r"#\w+\b", lambda found: layouts.get(found[0], found[0]), one) for one in named))


def _measure(job: tuple[str, int, int]) -> Usage:
    module, index, capability = job
    case: CompileCase = importlib.import_module(module).COMPILE_CASES[index]
    compiled = asdict(compile_case(case, capability))
    return Usage(module=module, case=index, kernel=case.kernel.__name__, capability=capability, **compiled)


def modules() -> list[str]:
    """All modules of kernels that have cases."""
    import redraft.kernels

    names = (f"redraft.kernels.{one.name}" for one in pkgutil.iter_modules(redraft.kernels.__path__))
    return [name for name in names if hasattr(importlib.import_module(name), "COMPILE_CASES")]


def measure(modules: list[str], workers: int) -> Iterator[Usage]:
    """Compile every case of ``modules`` for every architecture in ``workers`` processes."""
    jobs = [
        (module, index, capability)
        for module in modules
        for index, case in enumerate(importlib.import_module(module).COMPILE_CASES)
        for capability in CAPABILITIES
        if capability >= case.least_capability
    ]
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(_measure, jobs)


def main() -> None:
    """Print one JSON line per module, case and architecture."""
    parser = argparse.ArgumentParser(description="Compile kernels for every supported GPU, without one.")
    parser.add_argument("modules", nargs="*", help="modules with COMPILE_CASES, e.g. redraft.kernels.sample; else all")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes to compile in")
    arguments = parser.parse_args()
    if INTERPRETED:
        parser.error("unset TRITON_INTERPRET: interpreted kernels cannot be compiled")
    for usage in measure(arguments.modules or modules(), arguments.workers):
        sys.stdout.write(json.dumps(asdict(usage)) + "\n")


if __name__ == "__main__":
    main()
