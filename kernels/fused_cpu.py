"""Builds the CPU kernels in C with the machine's compiler, once, into the cache folder; without one there are none."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch  # noqa: F401  # so that its OpenMP runtime is there before the library looks for one

_NAMES = ("fused", "attention", "linear", "layer", "vocab", "adjust", "sample", "logprobs", "ngram", "trees")
SOURCES = tuple(Path(__file__).with_name(f"{name}_cpu.c") for name in _NAMES)
HEADERS = tuple(Path(__file__).with_name(f"{name}_cpu.h") for name in ("math", "logits"))
# nothing that reorders or contracts floating point: the bits are those the source spells out
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
WIDE = ("-mprefer-vector-width=512",)
"""Only on x86; tried first."""
THREADS = ("-fopenmp",)
"""GCC's runtime is the one that torch brings, under the same name, so both share one team of threads.  A second team
would compete with torch's, whose threads spin for a while after each product: rather none then."""

_P, _N, _F, _I = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
_ARGUMENTS = {
    "rms_norm": [_P, _P, _P, _P, _N, _N, _F, _I],
    "rope_and_cache": [_P] * 10 + [_N] * 4 + [_F, _F, _I],
    "swiglu": [_P, _P, _P, _N, _N, _I],
    "attention_plan": [_P, _N],
    "tree_attention": [_P] * 5,
    "decoder_layer": [_P] * 6,
    "linear_pack": [_P, _P, _N, _N],
    "linear_product": [_P] * 5 + [_N] * 3,
    "greedy": [_P, _P, _N, _N, _I],
    "best_of_rows": [_P] * 5 + [_N] * 4 + [_I],
    "sample_rows": [_P] * 10 + [_N, _N, _N, _I],
    "gumbel_ids": [_P] * 4 + [_N, _N],
    "log_probabilities": [_P] * 6 + [_N] * 3 + [_I],
    "adjust_rows": [_P] * 11 + [_N] * 3 + [_I],
    "ngram": [_P] * 5 + [_N] * 3 + [_P] * 3,
    "block_tree": [_P] * 3 + [_N] * 5 + [_P] * 3,
    "accept_rows": [_P] * 12 + [_N] * 6,
    "pack_tree": [_P] * 5 + [_N] * 3 + [_P] * 4,
    "merge_trees": [_P] * 9 + [_N] * 3,
}
_ANSWERS = ("ngram", "block_tree", "accept_rows", "pack_tree", "merge_trees")
"""Those that say whether they did it."""


@functools.cache
def load_fused() -> ctypes.CDLL | None:
    """The compiled library; None where there is no compiler, or with ``REDRAFT_FUSED_CPU=0``."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or os.environ.get("REDRAFT_FUSED_CPU") == "0":
        return None
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    threads = THREADS if "Free Software Foundation" in version else ()
    before = _runtimes()
    library = _load(compiler, version, threads)
    if threads and (library is None or _runtimes() != before):
        library = _load(compiler, version, ())
    return library


def _load(compiler: str, version: str, threads: tuple[str, ...]) -> ctypes.CDLL | None:
    text = [path.read_text() for path in (*SOURCES, *HEADERS)]
    key = "|".join((*text, *FLAGS, *WIDE, *threads, version, _processor()))
    name = f"fused-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    path = Path(os.environ.get("REDRAFT_CACHE") or Path.home() / ".cache" / "redraft") / "kernels" / name
    if not path.is_file() and not _build(compiler, path, threads):
        return None
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        return None
    for function, arguments in _ARGUMENTS.items():
        getattr(library, function).argtypes = arguments
        getattr(library, function).restype = _I if function in _ANSWERS else None
    library.linear_is_here.argtypes = []
    return library


def _build(compiler: str, path: Path, threads: tuple[str, ...]) -> bool:
    """Compile into place; a second process doing the same is harmless, the rename is atomic."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            for extra in (WIDE, ()):
                command = [compiler, *FLAGS, *threads, *extra, *map(str, SOURCES), "-o", str(made), "-lm"]
                if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                    made.replace(path)
                    return True
    return False


def _runtimes() -> set[str]:
    """OpenMP runtimes in this process."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.is_file() else []
    return {line.split()[-1] for line in lines if re.search(r"/lib[gi]?omp[^/]*$", line)}


def _processor() -> str:
    """What ``-march=native`` means here."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor()
    lines = info.read_text().splitlines()
    return "|".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
