"""Gumbel noise keyed by (seed, index of the token being produced, token id): the same in every batch, tree and draft.

``u = min((k + 1)·2⁻³², 1 − 2⁻²⁴)``, ``E = −log1p(−u)``, ``g = −log(E)``, where ``k`` is lane ``v % 4`` of Philox4x32-10
with counter ``(v // 4, t, 0, 0)`` and the seed's two 32-bit words (low, high) as key.  Philox: Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3", SC 2011.

Libraries disagree in the last bits of ``log``, and torch's vectorised loops may disagree with their own tails.  So
``log`` is written out here in additions, products, divisions and integer operations, each rounded as IEEE 754 says: the
bits of ``g`` follow from (s, t, v) alone, in torch as in Triton (launched with ``enable_fp_fusion=False``).  Equality
is promised per device; between devices it is what the arithmetic implies and nothing more.
"""

# kernels' parameters are Triton's, not Python's
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch

from redraft.kernels.triton_support import CompileCase, check_tensor, jit, tl, use_triton
from redraft.kernels.vocab_cpu import noise_of_ids

LOWEST, HIGHEST = -2.82, 22.19
"""Bounds of ``g``: u = 1 − 2⁻²⁴ gives −log(24·log 2) = −2.8116, u = 2⁻³² gives 32·log 2 = 22.1807."""

Word = torch.Tensor | int

_WORD = 0xFFFFFFFF
_ROUNDS = 10


def _product(word: Word, factor: int) -> tuple[Word, Word]:
    """High and low word of word · factor; a tensor's low word has anything above its 32 bits."""
    # int64 products wrap modulo 2⁶⁴, which leaves both words right
    product = word * factor
    return product >> 32, product & _WORD if isinstance(product, int) else product


def _mix(high: Word, word: Word, key: Word) -> Word:
    mixed = high ^ word
    mixed ^= key
    mixed &= _WORD
    return mixed


def philox_words(
    key_low: Word, key_high: Word, c0: torch.Tensor, c1: Word, c2: Word = 0, c3: Word = 0
) -> list[torch.Tensor]:
    """Philox4x32-10: the four output words (int64 in [0, 2³²)) of key (low, high) and counter (c0, c1, c2, c3).

    ``c0`` is an int64 tensor of words below 2³², the others such tensors that broadcast to its shape, or ints: what two
    rounds have not yet mixed with a tensor is computed as ints.
    """
    w0: Word = c0
    w1, w2, w3 = c1, c2, c3
    for _ in range(_ROUNDS):
        (high0, low0), (high2, low2) = _product(w0, 0xD2511F53), _product(w2, 0xCD9E8D57)
        w0, w1, w2, w3 = _mix(high2, w1, key_low), low2, _mix(high0, w3, key_high), low0
        key_low, key_high = key_low + 0x9E3779B9, key_high + 0xBB67AE85
    return [torch.as_tensor(word & _WORD) for word in (w0, w1, w2, w3)]


def log_fp32(x: torch.Tensor) -> torch.Tensor:
    """Natural logarithm of positive normal fp32 numbers, the same bits in any place of a tensor and on any device.

    x = 2ᵉ·m with m in [√½, √2); log m = 2·atanh(s), s = (m − 1)/(m + 1), by its series, which is cut at 2e-9.
    """
    bits = x.contiguous().view(torch.int32)
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - (exponent << 23)).view(torch.float32) - 1.0
    s = f / (f + 2.0)
    z = s * s
    series = ((z * (2 / 9) + 2 / 7) * z + 2 / 5) * z + 2 / 3
    e = exponent.to(torch.float32)
    # the high part of log 2 has 9 bits, so its product with the exponent is exact
    return e * 0.693359375 + (e * -2.12194440e-4 + (s * 2.0 + s * (z * series)))


def uniform_of_word(k: torch.Tensor) -> torch.Tensor:
    """``u`` (fp32) of Philox words ``k`` (int64)."""
    return ((k + 1).to(torch.float32) * 2.0**-32).clamp(max=1.0 - 2.0**-24)


def gumbel_of_uniform(u: torch.Tensor) -> torch.Tensor:
    """``g = −log(−log1p(−u))`` for fp32 ``u`` in [2⁻³², 1 − 2⁻²⁴]."""
    y = 1.0 - u
    # what rounding 1 − u to y lost, put back to first order: log(1 − u) = log(y) + lost
    lost = (1.0 - y) - u
    return -log_fp32(-(log_fp32(y) + lost))


def gumbel_twin(seed: torch.Tensor, t: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Noise ``[R, N]`` fp32 of ``seed [R]``, index of the token produced ``t [R]``, token ids ``[R, N]``, all int64."""
    low, high = (seed & _WORD)[:, None], ((seed >> 32) & _WORD)[:, None]
    words = torch.stack(philox_words(low, high, ids >> 2, (t & _WORD)[:, None]), dim=-1)
    return gumbel_of_uniform(uniform_of_word(words.gather(-1, (ids & 3).unsqueeze(-1)).squeeze(-1)))


@jit
def log_device(x):
    """``log_fp32`` in Triton."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    s = tl.div_rn(f, f + 2.0)
    z = s * s
    series = ((z * (2 / 9) + 2 / 7) * z + 2 / 5) * z + 2 / 3
    e = exponent.to(tl.float32)
    return e * 0.693359375 + (e * -2.12194440e-4 + (s * 2.0 + s * (z * series)))


@jit
def gumbel_of_word_device(k):
    """``gumbel_of_uniform(uniform_of_word(k))`` in Triton, for words ``k`` (uint32)."""
    u = tl.minimum((k.to(tl.int64) + 1).to(tl.float32) * 2.3283064365386963e-10, 0.999999940395355224609375)
    y = 1.0 - u
    lost = (1.0 - y) - u
    return -log_device(-(log_device(y) + lost))


@jit
def gumbel_block_device(seed, t, i_first, GROUPS: tl.constexpr):
    """Noise of the ``4·GROUPS`` consecutive token ids from ``i_first`` (a multiple of 4) of one row: ``[4·GROUPS]``."""
    o_group = (i_first // 4 + tl.arange(0, GROUPS)).to(tl.uint32)
    b_zero = o_group * 0
    w0, w1, w2, w3 = tl.philox(seed, o_group, b_zero + t.to(tl.uint32), b_zero, b_zero)
    return gumbel_of_word_device(tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [4 * GROUPS]))


@jit
def gumbel_ids_kernel(p_seed, p_t, p_ids, p_out, N, BLOCK: tl.constexpr):
    """One program per row ``[R]`` and block of ``p_ids [R, N]`` → ``p_out [R, N]``."""
    i_row = tl.program_id(0).to(tl.int64)
    o_col = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_col = o_col < N
    b_ids = tl.load(p_ids + i_row * N + o_col, mask=m_col, other=0)
    b_group = (b_ids >> 2).to(tl.uint32)
    b_zero = b_group * 0
    b_t = b_zero + tl.load(p_t + i_row).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(tl.load(p_seed + i_row), b_group, b_t, b_zero, b_zero)
    b_lane = b_ids & 3
    b_word = tl.where(b_lane < 2, tl.where(b_lane == 0, w0, w1), tl.where(b_lane == 2, w2, w3))
    tl.store(p_out + i_row * N + o_col, gumbel_of_word_device(b_word), mask=m_col)


def gumbel_kernel(seed: torch.Tensor, t: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """``gumbel_twin`` as one Triton launch."""
    check_tensor("ids", ids, 2, torch.int64)
    check_tensor("seed", seed, 1, torch.int64, like=ids)
    check_tensor("t", t, 1, torch.int64, like=ids)
    R, N = ids.shape
    if seed.shape[0] != R or t.shape[0] != R:
        raise ValueError(f"seed and t must have one element for each of the {R} rows of ids")
    out = torch.empty(R, N, dtype=torch.float32, device=ids.device)
    block = 1024
    if R and N:
        gumbel_ids_kernel[(R, -(-N // block))](seed, t, ids, out, N, BLOCK=block, num_warps=4, enable_fp_fusion=False)
    return out


def gumbel(seed: torch.Tensor, t: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Noise ``[R, N]`` fp32 of ``seed [R]``, index of the token produced ``t [R]``, token ids ``[R, N]``, all int64."""
    if use_triton(seed, t, ids):
        return gumbel_kernel(seed, t, ids)
    compiled = noise_of_ids(seed, t, ids)
    return gumbel_twin(seed, t, ids) if compiled is None else compiled


COMPILE_CASES = (
    CompileCase(
        gumbel_ids_kernel,
        {"p_seed": "*i64", "p_t": "*i64", "p_ids": "*i64", "p_out": "*fp32", "N": "i32"},
        {"BLOCK": 1024},
        enable_fp_fusion=False,
    ),
)
