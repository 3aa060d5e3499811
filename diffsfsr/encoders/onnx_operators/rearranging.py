"""ONNX operators that rearrange, choose, repeat and grow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from diffsfsr.encoders.onnx_record import Numbers, Recorder, Sizes, axis_of, known, rank, refuse, shadow

_FAR = 2**62


def shape(x: Any, *, start: int = 0, end: int | None = None) -> Sizes:
    dims = range(rank(x))[start:end]
    return Sizes(tuple(shadow(x).shape)[start:end] if known(x) is not None else tuple(x.size(i) for i in dims))


def size(x: Tensor) -> Sizes:
    return Sizes((x.numel(),), scalar=True)


def reshape(x: Tensor, target: Numbers, *, allowzero: int = 0) -> Tensor:
    """0 keeps a dimension (unless allowzero), -1 takes what is left."""
    keep = [isinstance(n, int) and n == 0 and not allowzero for n in target]
    if any(kept and i >= rank(x) for i, kept in enumerate(keep)):
        raise ValueError(f"the shape {target} keeps a dimension that a value of {rank(x)} dimensions has not")
    return x.reshape([x.size(i) if kept else n for i, (kept, n) in enumerate(zip(keep, target, strict=True))])


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """To two dimensions: those before `axis`, and the rest."""
    dims = rank(x)
    axis = dims if axis == dims else axis_of(axis, dims)
    if axis == 1 < dims:
        return x.flatten(1)
    before = [x.size(i) for i in range(axis)]
    return x.reshape([math.prod(before[1:], start=before[0]) if before else 1, -1])


def squeeze(x: Tensor, axes_: Numbers | None = None, /, *, axes: Numbers | None = None) -> Tensor:
    """Without axes: every dimension that can only be 1; a free batch stays even when it is 1."""
    axes = axes_ if axes is None else axes
    if axes is None:
        return x.squeeze([i for i, size in enumerate(shadow(x).shape) if size == 1])
    dims = sorted({axis_of(axis, rank(x)) for axis in axes})
    if any(shadow(x).shape[dim] != 1 for dim in dims):
        raise ValueError(f"axes {axes} of {tuple(shadow(x).shape)} are not all 1")
    return x.squeeze(dims)


def unsqueeze(x: Tensor, axes_: Numbers | None = None, /, *, axes: Numbers | None = None) -> Tensor:
    places = axes_ if axes is None else axes
    total = rank(x) + len(places or [])
    for axis in sorted(axis_of(axis, total) for axis in places or []):
        x = x.unsqueeze(axis)
    return x


def transpose(x: Tensor, *, perm: Numbers | None = None) -> Tensor:
    return x.permute(perm if perm is not None else list(range(rank(x)))[::-1])


def concat(*values: Tensor, axis: int) -> Tensor:
    return torch.cat(values, axis_of(axis, rank(values[0])))


def expand(x: Tensor, target: Numbers) -> Tensor:
    """Both ways: a 1 in the target keeps x's own size."""
    own = [None] * (len(target) - rank(x)) + list(range(rank(x)))
    padded = [1] * (rank(x) - len(target)) + target
    return x.expand([_larger(x, dim, size) for dim, size in zip(own, padded, strict=True)])


def _larger(x: Any, dim: int | None, size: Any) -> Any:
    """Of a dimension and the size asked for, the one that is not 1."""
    if dim is None:
        return size
    return torch.sym_max(x.size(dim), size) if isinstance(size, fx.Proxy) else -1 if size == 1 else size


def constant_of_shape(target: Numbers, *, value: Tensor | None = None, record: Recorder) -> Any:
    """A view of one number: nothing is allocated."""
    return (record.constant(torch.zeros(1)) if value is None else value).reshape(()).expand(target)


def arange(start: Numbers, limit: Numbers, delta: Numbers, *, record: Recorder) -> Any:
    """Of numbers known when the network is loaded."""
    if any(isinstance(v[0], fx.Proxy) for v in (start, limit, delta)):
        raise ValueError("a Range over sizes that may change is not read")
    steps = max(0, math.ceil((limit[0] - start[0]) / delta[0])) if delta[0] else 0
    one: Any = record.constant(torch.ones((), dtype=torch.int64))
    counted = one.expand(steps).cumsum(0)
    return (counted - 1) * delta[0] + start[0]


def split(x: Tensor, sizes: Numbers | None = None, /, *, axis: int = 0, split: Numbers | None = None, num_outputs: int = 0, outputs: int):
    """Sizes are an attribute before opset 13, then an input; without them parts are equal, the last one perhaps smaller."""
    given = sizes if split is None else split
    if given is not None and len(given) != outputs:
        raise ValueError(f"splits into {len(given)} parts, but has {outputs} outputs")
    each = given or -(-x.size(axis) // outputs)
    parts = x.split(each, axis)
    return tuple(parts[i] for i in range(outputs))


def slice_(
    x: Tensor,
    starts_: Numbers | None = None,
    ends_: Numbers | None = None,
    axes_: Numbers | None = None,
    steps: Numbers | None = None,
    /,
    *,
    starts: Numbers | None = None,
    ends: Numbers | None = None,
    axes: Numbers | None = None,
) -> Tensor:
    """x[start:end:step] along each axis; attributes before opset 10, then inputs."""
    starts, ends, axes = starts or starts_ or [], ends or ends_ or [], axes or axes_
    axes = list(range(len(starts))) if axes is None else axes
    for start, end, axis, step in zip(starts, ends, axes, steps or [1] * len(starts), strict=True):
        x = _sliced(x, start, end, axis_of(axis, rank(x)), step)
    return x


def _sliced(x: Tensor, start: Any, end: Any, axis: int, step: int) -> Tensor:
    if step < 0:  # the same elements from the other side
        x, start, end, step = x.flip(axis), _mirrored(x, start, axis), _mirrored(x, end, axis), -step
    return x[(slice(None),) * axis + (slice(_clipped(start), _clipped(end), step),)]


def _clipped(place: Any) -> Any:
    """Exporters write the smallest and the largest integer for "the end", which torch warns of."""
    return place if isinstance(place, fx.Proxy) else max(-_FAR, min(place, _FAR))


def _mirrored(x: Any, place: Any, axis: int) -> Any:
    """Where a place is, counted from the other end: -1 is 0, before the start is past the end."""
    if isinstance(place, int) and place < 0:
        return -1 - place
    return torch.sym_max(x.size(axis) - 1 - place, 0)


def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    const, axis = known(indices), axis_of(axis, rank(x))
    _check_places(const, shadow(x).shape[axis])
    index = int(const) if const is not None and const.dim() == 0 else indices
    return x[(slice(None),) * axis + (index,)]


def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    axis = axis_of(axis, rank(x))
    _check_places(known(indices), shadow(x).shape[axis])
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.size(axis), indices))


def _check_places(places: Tensor | None, length: int) -> None:
    """Raise ValueError for constant indices outside an axis: tensors without memory do not look at them."""
    if places is not None and places.numel() and not (-length <= places.min() and places.max() < length):
        raise ValueError(f"reads places {int(places.min())} to {int(places.max())} of {length}")


def tile(x: Tensor, repeats: Numbers) -> Tensor:
    return x.repeat(repeats)


def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    refuse("mode", mode, "DCR", "CRD")
    n, c, h, w = (x.size(i) for i in range(4))
    inner = c // (blocksize * blocksize)
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    x = x.reshape([n, blocksize, blocksize, inner, h, w]).permute([0, 3, 4, 1, 5, 2])
    return x.reshape([n, inner, h * blocksize, w * blocksize])


def space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    n, c, h, w = (x.size(i) for i in range(4))
    x = x.reshape([n, c, h // blocksize, blocksize, w // blocksize, blocksize]).permute([0, 3, 5, 1, 2, 4])
    return x.reshape([n, c * blocksize * blocksize, h // blocksize, w // blocksize])


def constant(*, record: Recorder, value: Tensor | None = None, **numbers: Any) -> Any:
    """A tensor, or one of value_float, value_floats, value_int, value_ints."""
    if value is not None:
        return value
    ((name, given),) = numbers.items()
    refuse("attribute", name, "value_float", "value_floats", "value_int", "value_ints")
    return record.constant(torch.tensor(given, dtype=torch.float32 if "float" in name else torch.int64))


def padded(x: Tensor, before: Numbers, after: Numbers, value: float = 0.0) -> Tensor:
    """x with its last axes grown; a negative number cuts off."""
    both = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    return x if all(isinstance(n, int) and n == 0 for n in both) else F.pad(x, both, value=value)


def pad(
    x: Tensor,
    pads_: Numbers | None = None,
    value_: Numbers | None = None,
    axes: Numbers | None = None,
    /,
    *,
    mode: str = "constant",
    pads: Numbers | None = None,
    value: float = 0.0,
) -> Tensor:
    """Attributes before opset 11, then inputs; since 18 of chosen axes only."""
    refuse("mode", mode, "constant", "reflect", "edge", "wrap")
    given, dims = pads or pads_ or [], rank(x)
    chosen = [axis_of(axis, dims) for axis in axes] if axes is not None else list(range(dims))
    if len(given) != 2 * len(chosen):
        raise ValueError(f"{len(given)} pads for {len(chosen)} axes")
    before, after = [0] * dims, [0] * dims
    for i, axis in enumerate(chosen):
        before[axis], after[axis] = given[i], given[i + len(chosen)]
    if mode == "constant":
        return padded(x, before, after, value_[0] if value_ else value)
    first = next((i for i in range(dims) if (before[i], after[i]) != (0, 0)), dims)
    return x if first == dims else _mirror(x, before, after, max(first, 1), mode)


def _mirror(x: Tensor, before: Numbers, after: Numbers, first: int, mode: str) -> Tensor:
    """torch pads by reflection the last one to three axes of a value with one or two more."""
    last = rank(x) - first
    if last > 3 or any(before[:first] + after[:first]):
        raise ValueError(f"mode={mode!r} over more than the last three axes, or over the first, is not read")
    both = [n for i in reversed(range(first, rank(x))) for n in (before[i], after[i])]
    y = x if rank(x) - last <= 2 else x.flatten(0, rank(x) - last - 2)
    y = F.pad(y, both, mode={"reflect": "reflect", "edge": "replicate", "wrap": "circular"}[mode])
    return y if rank(x) - last <= 2 else y.unflatten(0, [x.size(i) for i in range(rank(x) - last - 1)])


REARRANGING: dict[str, Callable[..., Any]] = {
    "Shape": shape,
    "Size": size,
    "Reshape": reshape,
    "Flatten": flatten,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Transpose": transpose,
    "Concat": concat,
    "Expand": expand,
    "Tile": tile,
    "ConstantOfShape": constant_of_shape,
    "Range": arange,
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "GatherElements": gather_elements,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Constant": constant,
    "Pad": pad,
}
