"""How a CPU's compiled loops (numba) are made and run, and the functions of one number that they share.

Importing this file imports numba, which takes half a second: ``kernels.py`` does it when it is wanted.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.compiler import Compiler
from numba.extending import intrinsic, overload
from torch import Tensor

SMALL = 1 << 20
"""Numbers in the largest tensor that are worth another thread: starting one takes as long as the work on 100,000."""

ZERO, HALF, ONE, TWO = (np.float32(c) for c in (0, 0.5, 1, 2))
LOG2_E, LN_2_HIGH, LN_2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
E0, E1, E2, E3, E4, E5 = (np.float32(c) for c in (1.9875691e-4, 1.3981999e-3, 8.3334519e-3, 4.1665795e-2, 1.6666666e-1, 5.0000001e-1))
L3, L5, L7, L9, L11, L13, L15, L17 = (np.float32(1 / n) for n in range(3, 18, 2))
LOW, HIGH = np.float32(-87), np.float32(88)
LOWEST = np.float32(-3e38)
"""Where a maximum begins: -inf less -inf would be no number."""

BIAS, MANTISSA = np.int32(127), np.int32(23)
HALF_BITS, ODD, NEAREST = np.uint32(16), np.uint32(1), np.uint32(0x7FFF)

UNSIGNED = np.uint64
"""Of an index that is a sum: one with a sign might count from the end, and a loop that must ask becomes no vectors."""

# LLVM takes halves of AVX-512's registers, for the sake of CPUs that slow down with whole ones. Those with AMX do not. numba asks once in a
# process, when it is first used: where analysis/ was first, the loops here are as right and a quarter slower.
if (features := llvm.get_host_cpu_features()).get("amx-tile") and not numba.config.CPU_FEATURES:
    numba.config.CPU_FEATURES = f"{features.flatten()},-prefer-256-bit"

FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
"""Sums may be reordered, which vectors need. Not "nnan" and "ninf": with them a NaN among the inputs could come out as any number."""


SOURCES = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("numba_*.py")))).hexdigest()
"""Of all files of loops."""


class _Distinct(Compiler):
    """Arrays that a function is given do not overlap, which C calls ``restrict``: twice as fast, as no vector loop has to check it."""

    def __init__(self, typing: Any, target: Any, library: Any, args: Any, return_type: Any, flags: Any, locals: Any):
        flags.noalias = True
        super().__init__(typing, target, library, args, return_type, flags, locals)


def compiled(function: Callable, **options: Any) -> Callable:
    """Machine code, made at the first call and kept on disk for the next process where a folder can be written to.

    It holds the code of what it calls. numba makes it anew when the function's own file has changed; here, when any file of loops has.
    """
    options = {"fastmath": FASTMATH, "nogil": True, "error_model": "numpy"} | options
    try:
        made = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder for the cache
        return numba.njit(**options)(function)
    made._cache._cache_file._source_stamp = SOURCES
    return made


def distinct(function: Callable) -> Callable:
    """``compiled``, of a function that is given arrays that do not overlap where it writes.

    Give it whole arrays and the indices of what is meant: a view is counted, which costs more than the work on a small head.
    """
    return compiled(function, pipeline_class=_Distinct)


def in_threads(work: Callable[[int, int], None], count: int, numbers: int) -> None:
    """``work(first, last)`` over ``count`` equal parts, on at most torch's number of threads, and fewer where there are few ``numbers``."""
    threads = max(1, min(torch.get_num_threads(), count, 1 + numbers // SMALL))
    cuts = [count * i // threads for i in range(threads + 1)]
    if threads == 1:
        return work(0, count)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, cuts[:-1], cuts[1:]))


def memory(x: Tensor) -> np.ndarray:
    """What another operation made, no parameter; bfloat16, which numpy lacks, as its bits."""
    x = x.detach()
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def parameter(x: Tensor) -> np.ndarray:
    """The memory of what may be a parameter, as float32. Not x.numpy(): that forbids it to be freed, which sharded training (FSDP) does."""
    return np.from_dlpack(x.detach().float())


@compiled
def exp(x):
    """e^x to 8e-8, in arithmetic that becomes vectors, which the C library's does not (polynomial of Cephes' expf). A NaN stays one."""
    x = LOW if x < LOW else x
    x = HIGH if x > HIGH else x
    n = np.floor(x * LOG2_E + HALF)
    r = (x - n * LN_2_HIGH) - n * LN_2_LOW
    p = ((((E0 * r + E1) * r + E2) * r + E3) * r + E4) * r + E5
    return (p * r * r + r + ONE) * np.int32((np.int32(n) + BIAS) << MANTISSA).view(np.float32)


@compiled
def softplus(x):
    """log(1 + e^x) = max(x, 0) + log(1 + e), e = e^-|x| <= 1; with s = e / (2 + e) <= 1/3 the latter is 2 atanh(s)."""
    e = exp(-abs(x))
    s = e / (TWO + e)
    y = s * s
    series = (((((((L17 * y + L15) * y + L13) * y + L11) * y + L9) * y + L7) * y + L5) * y + L3) * y
    return (x if x > ZERO else x * ZERO) + TWO * s * (ONE + series)


def wide(x):
    """A number of float32, or of bfloat16's bits, as float32."""


def rounded(x, out):
    """A float32 as a number of the array ``out``: of float32, or the bits of the nearest bfloat16, of two of the even one."""


@overload(wide)
def _wide(x):
    if x == types.uint16:
        return lambda x: np.uint32(np.uint32(x) << HALF_BITS).view(np.float32)  # numba widens a shift to 64 bits
    return lambda x: x


@overload(rounded)
def _rounded(x, out):
    def bits(x, out):
        whole = np.float32(x).view(np.uint32)
        odd = np.uint32(np.uint32(whole >> HALF_BITS) & ODD)
        return np.uint16(np.uint32(whole + np.uint32(NEAREST + odd)) >> HALF_BITS)

    return bits if out.dtype == types.uint16 else lambda x, out: x


@intrinsic
def fetch(context, array, b, t, h, i):
    """Have the cache line of ``array[b, t, h, i]`` brought near."""

    def call(context, builder, signature, arguments):
        array_type = signature.args[0]
        array = context.make_array(array_type)(context, builder, arguments[0])
        pointer = cgutils.get_item_pointer(context, builder, array_type, array, arguments[1:])
        pointer = builder.bitcast(pointer, ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [pointer.type], ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        )
        builder.call(function, [pointer, number(0), number(3), number(1)])  # to read, into the nearest cache, data
        return context.get_dummy_value()

    return types.void(array, *[types.intp] * 4), call
