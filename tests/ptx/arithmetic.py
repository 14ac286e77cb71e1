"""What one PTX instruction without memory or control computes, on arrays with one entry per thread."""

from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any

_COMPARE = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def compare(name: str, a: Array, b: Array) -> Array:
    """setp: ordered comparisons are false where an operand is NaN, those that end in "u" true."""
    if np.issubdtype(np.asarray(a).dtype, np.floating):
        unordered = np.isnan(a) | np.isnan(b)
        if name == "nan":
            return unordered
        if name == "num":
            return ~unordered
        if name[-1] == "u":
            return _COMPARE[name[:-1]](a, b) | unordered
        return _COMPARE[name](a, b) & ~unordered
    return _COMPARE[name](a, b)


def _fused(a: Array, b: Array, c: Array) -> Array:
    """a * b + c in float64, where the product of two float32 is exact."""
    return a.astype(np.float64) * np.asarray(b, np.float64) + np.asarray(c, np.float64)


def _fma_down(a: Array, b: Array, c: Array) -> Array:
    exact = _fused(np.asarray(a), b, c)
    nearest = exact.astype(np.float32)
    return np.where(nearest > exact, np.nextafter(nearest, np.float32(-np.inf)), nearest)


def _quotient(a: Array, b: Array) -> Array:
    """Integer division as C rounds it: towards zero."""
    magnitude = np.abs(a) // np.abs(b)
    return np.where((a < 0) != (b < 0), -magnitude, magnitude).astype(np.asarray(a).dtype)


def _shift_left(a: Array, count: Array) -> Array:
    width = np.asarray(a).dtype.itemsize * 8
    return np.where(count < width, a << np.minimum(count, width - 1).astype(a.dtype), 0).astype(a.dtype)


def _shift_right(a: Array, count: Array) -> Array:
    """Arithmetic for signed types; shifts past the width give what is left after all bits went."""
    width = np.asarray(a).dtype.itemsize * 8
    shifted = a >> np.minimum(count, width - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(count < width, shifted, 0).astype(a.dtype)


def _insert_bits(field: Array, into: Array, position: Array, length: Array) -> Array:
    mask = ((1 << int(np.max(length))) - 1) << int(np.max(position))
    return ((field << np.uint32(np.max(position))) & np.uint32(mask)) | (into & np.uint32(~mask & 0xFFFFFFFF))


def _population(a: Array) -> Array:
    return np.unpackbits(np.ascontiguousarray(a).view(np.uint8).reshape(-1, 4), axis=1).sum(axis=1).astype(np.uint32)


# By operation without its type. Operands have the type that the instruction names, shift counts are uint32.
OPERATIONS: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "mul.lo": np.multiply,
    "mad.lo": lambda a, b, c: a * b + c,
    "fma.rn": lambda a, b, c: _fused(np.asarray(a), b, c).astype(np.float32),
    "fma.rm": _fma_down,
    "div": _quotient,
    "rem": lambda a, b: a - _quotient(a, b) * b,
    "div.rn": np.divide,
    "rcp.rn": lambda a: np.float32(1) / a,
    "ex2.approx.ftz": lambda a: np.exp2(a.astype(np.float64)).astype(np.float32),
    "min": np.fmin,
    "max": np.fmax,
    "abs": np.abs,
    "neg": np.negative,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "shl": _shift_left,
    "shr": _shift_right,
    "bfi": _insert_bits,
    "popc": _population,
}


def _bfloat16_bits(value: Array) -> Array:
    """Rounded to nearest, ties to even; NaN becomes the one that the hardware makes."""
    bits = np.asarray(value, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & np.uint32(1))) >> 16
    return np.where(np.isnan(value), np.uint32(0x7FFF), rounded).astype(np.uint32)


def _float16_bits(value: Array) -> Array:
    return np.asarray(value, np.float32).astype(np.float16).view(np.uint16).astype(np.uint32)


# By the types to and from, with what stands before them.
CONVERSIONS: dict[str, Callable[..., Array]] = {
    "f32.f16": lambda a: a.astype(np.float32),
    "sat.f32.f32": lambda a: np.where(np.isnan(a), np.float32(0), np.clip(a, np.float32(0), np.float32(1))),
    "rn.bf16x2.f32": lambda upper, lower: _bfloat16_bits(upper) << 16 | _bfloat16_bits(lower),
    "rn.f16x2.f32": lambda upper, lower: _float16_bits(upper) << 16 | _float16_bits(lower),
}
