"""How much of an ONNX file is structure, told without parsing it.

Protobuf's parser makes an object of a hundred bytes out of a message that takes two in the file, so that a small file can fill the memory.
What an honest file has much of is numbers, and those stand in few long fields.
"""

from __future__ import annotations

from mmap import mmap
from typing import Any

_LARGEST_STRUCTURE = 1 << 24  # bytes; twenty thousand nodes take about half
_LEAST = 16  # bytes that a field counts for, however short
_NUMBERS = "numbers"
# The fields to look into, by their numbers in onnx.proto: a model's graph (7), its nodes (1) and constants (5), a node's attributes (5),
# an attribute's tensor (5), a tensor's float_data (4), int32_data (5), int64_data (7), raw_data (9) and double_data (10).
_TENSOR: dict[int, Any] = dict.fromkeys((4, 5, 7, 9, 10), _NUMBERS)
_MODEL: dict[int, Any] = {7: {1: {5: {5: _TENSOR}}, 5: _TENSOR}}


def check_structure(data: bytes | mmap) -> None:
    """Raise ValueError when `data` is cut off, is no protobuf message, or holds more than an honest file beside its tensors' numbers."""
    try:
        _scan(data, 0, len(data), _MODEL, [_LARGEST_STRUCTURE])
    except IndexError:
        raise ValueError("not an ONNX file, or cut off or damaged") from None


def _scan(data: bytes | mmap, at: int, end: int, fields: dict[int, Any], left: list[int]) -> None:
    """One message: data[at:end]. `left`: bytes of structure that may still come."""
    while at < end:
        key, at = _varint(data, at)
        inner, length = fields.get(key >> 3), 0
        if key & 7 == 0:
            _, at = _varint(data, at)
        elif key & 7 == 2:
            length, at = _varint(data, at)
        else:
            length = {1: 8, 5: 4}.get(key & 7, len(data))
        if length > end - at:
            raise IndexError
        if isinstance(inner, dict) and key & 7 == 2:
            _scan(data, at, at + length, inner, left)
        left[0] -= _LEAST if inner is not None else max(length, _LEAST)
        if left[0] < 0:
            raise ValueError(f"more than {_LARGEST_STRUCTURE} bytes beside the numbers of its tensors: not a network")
        at += length


def _varint(data: bytes | mmap, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and the place after it. IndexError where it does not end."""
    value = shift = 0
    while shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise IndexError
