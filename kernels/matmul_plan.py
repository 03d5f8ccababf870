"""How a product is cut up, by the weight's shape and the architecture alone: never by the rows, which must not matter.

At decode a product is the time it takes to read the weight once, 3.35 TB/s on an H100, 4.8 on an H200.  What that asks
for, with 132 multiprocessors and some 700 ns from request to data:

- *Bytes under way*, 4.8 TB/s times 700 ns: 3.4 MB, 26 KB a multiprocessor.  A buffer of 64 columns by 64 of K holds
  8 KB of weights, one of the gated product twice that; of those that fit ``SHARED`` all but one are under way while
  that one is multiplied: 40 to 48 KB a program of 64 columns at up to 32 rows, 32 KB at 64.
- *One wave.*  Programs that run all at once share the bandwidth, so nothing is lost if they are no multiple of 132; a
  second wave that is half empty loses half of itself.  ``SHARED`` lets two programs live on a multiprocessor of an H100
  (264 places).  With 96 programs or more each needs at most 50 GB/s, half of what a multiprocessor can take in.  So K
  is split only until there are ``PROGRAMS`` = 96, and into parts of at least ``PART``, since the last one to arrive has
  to add the others up (1 to 2 microseconds).
- *Rows are read by every block of columns*: 64 rows weigh as much as 64 columns, all of it out of the second cache.
  Hence 64 columns, and 16 only for outputs below 2048, which have too few blocks of 64 and are bound by latency anyway:
  buffers of 128 then put all of K = 576 under way at once.

| | N, K | blocks, parts | programs |
| --- | --- | --- | ---: |
| SmolLM2-135M | 960, 576; 576, 576; 2 x 1536, 576; 576, 1536 | 60, 1; 36, 1; 96, 1; 36, 2 | 60; 36; 96; 72 |
| Qwen3-1.7B | 4096, 2048; 2048, 2048; 2 x 6144, 2048; 2048, 6144 | 64, 2; 32, 4; 96, 1; 32, 4 | 128; 128; 96; 128 |
| Qwen3-8B | 6144, 4096; 4096, 4096; 2 x 12288, 4096; 4096, 12288 | 96, 1; 64, 2; 192, 1; 64, 2 | 96; 128; 192; 128 |

Numbers of stages may differ with the rows: they move loads, not sums.  A norm costs a program its rows once more, out
of the second cache, before its first weight is multiplied: some 1 to 2 microseconds at K = 4096.  All these figures are
reasoned, not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

PROGRAMS = 96
PART = 512
"""Elements of K that a part has at least."""
SHARED = 80 * 1024
"""Bytes of buffers a program may hold: with what a norm takes beside them it fits consumer cards, and an H100 twice."""
ROWS = 32
"""Rows of one ``tl.dot``.  64 would make it wgmma on sm_90 and tcgen05 on sm_100: other arithmetic (design: "Bits")."""
WARPS = 4
"""What the order of a norm's squares rests on as well (``rms_norm.inverse_rms_device``)."""
TILES = 2
"""Tiles of ``ROWS`` rows that one program multiplies with a weight it has read, at most."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How one weight is multiplied, whatever the rows."""

    block_n: int
    """Columns of a program."""
    block_k: int
    parts: int
    """Parts of K, summed apart and then in order."""
    part: int
    """Elements of K in a part, a multiple of ``block_k``."""
    warps: int
    stage: int
    """Bytes of weights in a stage."""
    itemsize: int

    def blocks(self, outputs: int) -> int:
        """Blocks of columns that ``outputs`` make."""
        return -(-outputs // self.block_n)

    def stages(self, tiles: int) -> int:
        """Stages of the pipeline with ``tiles`` tiles of rows."""
        # Triton keeps one buffer less than there are stages
        return 1 + max(1, min(6, SHARED // (self.stage + tiles * ROWS * self.block_k * self.itemsize)))


def plan(outputs: int, inner: int, paired: bool, itemsize: int, most: int = 64, least: int = 16) -> Plan:
    """``outputs``: N, or pairs of columns where ``paired``, which gate and up are, and a head's halves; ``inner``: K.

    ``itemsize``: bytes of an element.  ``most``, ``least``: columns of a block, where something bounds them.
    All architectures from sm_80 to sm_120 have the same plan for now; one that needs another gets it here.
    """
    block_n = max(min(64 if outputs >= 2048 else 16, most), least)
    block_k = 64 if block_n > 16 else 128
    if itemsize == 4:
        # fp32 is multiplied without tensor cores, in registers
        block_n, block_k = 16 if paired else min(block_n, 32), 16
    steps, parts = -(-inner // block_k), 1
    while -(-outputs // block_n) * parts < PROGRAMS and inner >= 2 * parts * PART and steps >= 2 * parts:
        parts *= 2
    part = -(-steps // parts) * block_k
    # rounding up may have left the last one with nothing
    parts = -(-inner // part)
    return Plan(block_n, block_k, parts, part, WARPS, (1 + paired) * block_n * block_k * itemsize, itemsize)
