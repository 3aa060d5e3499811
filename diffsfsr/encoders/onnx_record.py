"""Writing down a torch computation while it is thought through on tensors without memory.

`Recorder` is what a translation of a network works on: each torch call made on its proxies becomes a node of a torch.fx graph, is tried
at once on a stand-in of the same shape on torch's meta device (so that a wrong shape or a monstrous size is known before anything is
allocated), and, where all that goes in is constant, is computed for good.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx.node import map_arg

_LARGEST_VALUE = 1 << 28  # numbers in one intermediate value, at the stand-in's batch
_FOLDED = 1 << 24  # numbers that constants may grow to by folding, beside twice what the file holds
_MOST_SIZES = 1024
_LARGEST_SIZE = 1 << 63  # ONNX's integers have 64 bits; Python's have no end
_LARGEST_DEGREE = 64  # of a polynomial in sizes known at run time
# Their working memory has no bound in terms of what goes in and comes out, and no network convolves constants.
_UNFOLDED = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


class Recorder(fx.proxy.GraphAppendingTracer):
    """A torch.fx graph in the making. A node's meta holds `val`, its stand-in, and `const`, its value where that is known now."""

    def __init__(self, constants: int) -> None:
        """`constants`: how many numbers the file itself holds; folding may reach a multiple of it."""
        super().__init__(fx.Graph())
        self._left = _FOLDED + 2 * constants

    def input(self, name: str, stand_in: Tensor) -> fx.Proxy:
        """A placeholder; `stand_in` is on the meta device."""
        node = self.graph.placeholder(_identifier("x", name))
        node.meta["val"] = stand_in
        return fx.Proxy(node, self)

    @property
    def first(self) -> Any:
        """The first input."""
        return fx.Proxy(next(iter(self.graph.nodes)), self)

    def constant(self, value: Tensor, name: str = "constant") -> fx.Proxy:
        """A value known now. It becomes a buffer only if something that is computed at run time reads it."""
        node = self.graph.create_node("get_attr", "constant", name=_identifier("c", name))
        node.meta |= {"const": value, "val": value.to("meta")}
        return fx.Proxy(node, self)

    def leaf(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A call of a function that tracing must not enter, because it looks at shapes."""
        proxy = self.create_proxy("call_function", function, args, kwargs)
        proxy.node.meta["is_wrapped"] = True  # as torch.fx.wrap would
        return proxy

    def finish(self, outputs: list[fx.Proxy]) -> fx.GraphModule:
        """The module that computes `outputs`, as a tuple. Its buffers are the file's constants, `c_<name>`, and folded ones, `f_<call>`."""
        self.graph.output(tuple(proxy.node for proxy in outputs))
        buffers: dict[str, Tensor] = {}
        for node in list(self.graph.nodes):
            if "const" in node.meta and any("const" not in user.meta for user in node.users):
                value = node.meta["const"]  # four-dimensional: a convolution's weights; channels last are faster on every device
                name = node.name if node.op == "get_attr" else f"f_{node.name}"
                buffers[name] = value.clone(memory_format=torch.channels_last if value.dim() == 4 else torch.contiguous_format)
                with self.graph.inserting_before(node):
                    node.replace_all_uses_with(self.graph.create_node("get_attr", name))
        self.graph.eliminate_dead_code()
        for node in self.graph.nodes:
            node.meta = {key: value for key, value in node.meta.items() if key == "is_wrapped"}
        self.graph.lint()
        return fx.GraphModule(buffers, self.graph)

    def create_arg(self, a: Any) -> Any:
        """A number that is known now is written down as such."""
        const = a.node.meta.get("const") if isinstance(a, fx.Proxy) else None
        return super().create_arg(a if const is None or isinstance(const, Tensor) else const)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> fx.Node:
        """The node, thought through. Raises ValueError where the call would make too large a value."""
        node = super().create_node(kind, target, args, kwargs, *rest, **more)
        node.meta["val"] = value = _call(node, "val")
        size = value.numel() if isinstance(value, Tensor) else 0
        if size > _LARGEST_VALUE:
            raise ValueError(f"makes {size} numbers at once, more than {_LARGEST_VALUE}")
        if isinstance(value, int | float):
            node.meta["degree"] = _degree(node)
        if node.all_input_nodes and target not in _UNFOLDED and all("const" in n.meta for n in node.all_input_nodes):
            self._left -= size
            if self._left < 0:
                raise ValueError(f"makes a constant of {size} numbers, out of proportion to the file")
            node.meta["const"] = _call(node, "const")
        return node


def _identifier(prefix: str, name: str) -> str:
    """A name from the file as one that clashes with nothing in Python."""
    return f"{prefix}_" + re.sub(r"\W", "_", name, flags=re.ASCII)[:60]


def _degree(node: fx.Node) -> int:
    """Of the polynomial in sizes that bounds a number known at run time: at another batch than the stand-in's it grows with that.

    Raises ValueError where it is one that no network reckons with: squared forty times, a batch of three would not end.
    """
    degrees = [arg.meta.get("degree", 1) for arg in node.args if isinstance(arg, fx.Node)]
    degree = sum(degrees) if node.target is operator.mul else max(degrees, default=1)
    if degree > _LARGEST_DEGREE:
        raise ValueError(f"multiplies more than {_LARGEST_DEGREE} sizes")
    return degree


def _call(node: fx.Node, key: str) -> Any:
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta[key])
    if isinstance(node.target, str):
        return getattr(args[0], node.target)(*args[1:], **kwargs)
    return node.target(*args, **kwargs)


def shadow(value: Any) -> Any:
    """The stand-in of a proxy (its number of dimensions and dtype are the real ones, its sizes need not be); other things as they are."""
    return value.node.meta["val"] if isinstance(value, fx.Proxy) else value


def rank(x: Any) -> int:
    """Number of dimensions."""
    return shadow(x).dim()


def known(x: Any) -> Tensor | None:
    """The value of a constant; None for what is only known at run time."""
    return None if x is None else x.node.meta.get("const")


@dataclass(frozen=True)
class Sizes:
    """A vector (or one number) of integers that came out of shapes: Python numbers, and proxies of those that are known at run time.

    ONNX computes shapes by ordinary operators on tensors; torch wants plain integers. Kept as such they cost nothing at run time,
    and torch.compile sees through them.
    """

    values: tuple[Any, ...]
    scalar: bool = False

    def __post_init__(self) -> None:
        if len(self.values) > _MOST_SIZES:
            raise ValueError(f"computes a shape of {len(self.values)} numbers")
        if any(isinstance(n := shadow(v), int) and not -_LARGEST_SIZE <= n < _LARGEST_SIZE for v in self.values):
            raise ValueError("computes a size that 64 bits do not hold")


Value = fx.Proxy | Sizes | None
Numbers = list[Any]  # Python numbers, or proxies of numbers: an operator's parameter of this type is given as such


def as_sizes(value: Value) -> Sizes | None:
    """Sizes as they are, a short constant vector or number likewise; None for anything else."""
    if isinstance(value, Sizes):
        return value
    const = known(value)
    if const is None or const.dim() > 1 or const.numel() > _MOST_SIZES:
        return None
    return Sizes(tuple(const.reshape(-1).tolist()), scalar=const.dim() == 0)


def as_numbers(value: Value) -> Numbers | None:
    """The numbers of an input that steers an operator (axes, a shape, pads). Raises ValueError when they depend on the picture."""
    if value is None:
        return None
    sizes = as_sizes(value)
    if sizes is None:
        raise ValueError("its axes, sizes or other settings are computed from the picture, which is not read")
    return list(sizes.values)


def as_tensor(value: Value, record: Recorder) -> Any:
    """Sizes as a tensor on the device of the inputs; anything else as it is."""
    if not isinstance(value, Sizes):
        return value
    if not any(isinstance(v, fx.Proxy) for v in value.values):
        made = torch.tensor(value.values, dtype=None if value.values else torch.int64)
        return record.constant(made.reshape(()) if value.scalar else made)
    dtype = {int: torch.int64, bool: torch.bool, float: torch.float32}[type(shadow(value.values[0]))]
    tensor = record.leaf(_new_tensor, record.first, list(value.values), dtype)
    return tensor.reshape(()) if value.scalar else tensor


def _new_tensor(like: Tensor, values: list[Any], dtype: torch.dtype) -> Tensor:
    """In the precision of `like` where both are floating-point."""
    return torch.tensor(values, dtype=like.dtype if dtype.is_floating_point and like.is_floating_point() else dtype, device=like.device)


def refuse(what: str, value: Any, *known_values: Any) -> None:
    """Raise ValueError unless an attribute has one of the values that are read."""
    if value not in known_values:
        raise ValueError(f"{what}={value!r} is not read (only {', '.join(repr(v) for v in known_values)})")


def axis_of(axis: int, dims: int) -> int:
    """A possibly negative axis as 0..dims-1."""
    if not -dims <= axis < dims:
        raise ValueError(f"axis {axis} of a value of {dims} dimensions")
    return axis % dims
