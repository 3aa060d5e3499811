"""An ONNX network as a torch module: batched, differentiable in its inputs, in any precision.

The file (`onnx_file`) is translated once, operator by operator, into a torch.fx graph of plain torch calls: what depends on nothing but
constants is computed then, shapes become Python integers, and every value's shape is tried on tensors without memory, so that a network
that does not fit together, or would fill the memory, is refused when it is loaded, with the name of the node.
"""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from diffsfsr.encoders.frozen import freeze
from diffsfsr.encoders.onnx_file import Graph, Input, Node, read_graph
from diffsfsr.encoders.onnx_operators import SIZES, TENSORS
from diffsfsr.encoders.onnx_record import Recorder, Sizes, Value, as_numbers, as_sizes, as_tensor
from diffsfsr.errors import InputError, did_you_mean

_GIVEN = ("opset", "record", "outputs")  # what an operator's function may ask for beside inputs and attributes
_BATCH = 2  # a free first dimension, while a network is tried without memory; 1 would hide a mistaken squeeze
_CHANNELS = 3  # a free second dimension of a picture whose height and width are free too
_SIDES = (64, 112, 128, 224, 256)  # the other free dimensions, one after the other: not every network takes every size


class OnnxNet(nn.Module):
    """A frozen network. `inputs` and `outputs` are its names; `input_shapes` what was declared, None where any size may stand.

    `body` is a torch.fx.GraphModule without control flow: it can be traced again, compiled, copied and pickled. All weights and other
    constants are buffers. A network whose batch was fixed when it was exported keeps it: give it that many at a time.
    """

    def __init__(self, graph: Graph) -> None:
        """Raises InputError, naming file, node and operator, for what is not read."""
        super().__init__()
        self.inputs = tuple(value.name for value in graph.inputs)
        self.outputs = graph.outputs
        self.input_shapes = tuple(value.shape for value in graph.inputs)
        self._floating = tuple(value.dtype.kind == "f" for value in graph.inputs)
        with torch.inference_mode(False):  # what is made under inference mode can never be part of a gradient
            self.body = _translate(graph)
        freeze(self)

    @classmethod
    def load(cls, path: Path) -> OnnxNet:
        """The network of an ONNX file, in float32. Raises InputError, naming the file, for one that is damaged or not read."""
        try:
            return cls(read_graph(Path(path)))
        except InputError:
            raise
        except Exception as e:  # a graph that nobody vouches for can make torch raise anything
            raise InputError(f"{path}: {_line(e)}") from e

    @classmethod
    def tried(cls, name: str, path: Path, *inputs: Tensor, gives: Sequence[tuple[int, ...]]) -> OnnxNet:
        """`load`, once the network has turned these ordinary inputs into finite outputs of the shapes `gives`.

        Raises InputError, naming the file, for whatever else comes of them: another network, a damaged or a hostile one.
        """
        net = cls.load(path)
        try:
            with torch.inference_mode(), contextlib.redirect_stderr(io.StringIO()):  # where torch.fx prints what it raises
                made = net(*inputs)
        except Exception as e:
            raise InputError(f"{path} is not {name}: {_line(e)}") from e
        outputs = made if isinstance(made, tuple) else (made,)
        taken, found = [tuple(x.shape) for x in inputs], [tuple(y.shape) for y in outputs]
        if found != list(gives):
            raise InputError(f"{path} is not {name}: it turns {taken} into {found} where {list(gives)} belongs")
        if not all(y.isfinite().all() for y in outputs):
            raise InputError(f"{path} is not {name}, or is damaged: ordinary inputs give values that are no numbers")
        return net

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The graph's inputs in order, of the declared shapes -> its output, or all of its outputs in order.

        Computed in the precision of the module; floating-point results come in the dtype of the first floating-point input.
        InputError for another number of inputs, shape or kind of number.
        """
        _check_inputs(inputs, self.inputs, self.input_shapes, self._floating)
        dtype = next((b.dtype for b in self.body.buffers() if b.is_floating_point()), None)
        given = next((x.dtype for x, floating in zip(inputs, self._floating, strict=True) if floating), None)
        outputs = self.body(*(x.to(dtype) if floating and dtype else x for x, floating in zip(inputs, self._floating, strict=True)))
        results = tuple(_back(y, given) for y in outputs)
        return results if len(results) > 1 else results[0]


@fx.wrap
def _check_inputs(
    inputs: tuple[Tensor, ...], names: tuple[str, ...], shapes: tuple[tuple[int | None, ...], ...], floating: tuple[bool, ...]
) -> None:
    """Raise InputError unless the inputs are of the number, shapes and kinds that were declared."""
    if len(inputs) != len(names):
        raise InputError(f"this network takes {len(names)} inputs ({', '.join(names)}), not {len(inputs)}")
    for x, name, shape, number in zip(inputs, names, shapes, floating, strict=True):
        wrong = [i for i, n in enumerate(shape) if len(shape) != x.dim() or (n is not None and n != x.shape[i])]
        if wrong or len(shape) != x.dim():
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            hint = " (it was exported for one batch size: give it that many at a time)" if wrong == [0] else ""
            raise InputError(f"the input {name} has the shape {tuple(x.shape)}, where ({wanted}) belongs{hint}")
        if x.is_floating_point() != number:
            raise InputError(f"the input {name} is {x.dtype}, where {'floating-point numbers' if number else 'integers'} belong")


@fx.wrap
def _back(y: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A floating-point result in that dtype; any other as it is."""
    return y.to(dtype) if dtype and y.is_floating_point() else y


# --- translation ------------------------------------------------------------------------------------------------------


def _translate(graph: Graph) -> fx.GraphModule:
    """The graph as a module that returns a tuple. Free sizes are tried with several stand-ins; the first one's failure is told."""
    free = any(None in value.shape[1:] for value in graph.inputs)
    failures = []
    for side in _SIDES if free else _SIDES[:1]:
        try:
            return _recorded(graph, side)
        except InputError as e:
            failures.append(e)
    raise failures[0]


def _recorded(graph: Graph, side: int) -> fx.GraphModule:
    record = Recorder(sum(array.size for array in graph.constants.values()))
    values: dict[str, Value] = {}
    try:
        for value in graph.inputs:
            values[value.name] = record.input(value.name, _stand_in(value, side))
        for name, array in graph.constants.items():
            values[name] = record.constant(torch.from_numpy(array), name)
    except Exception as e:
        raise InputError(f"{graph.path}: {_line(e)}") from e
    for node in graph.nodes:
        try:
            made = _called(node, [values[name] if name else None for name in node.inputs], graph.opset, record)
        except Exception as e:
            raise InputError(f"{graph.path}: node {node.name}, opset {graph.opset}: {_line(e)}") from e
        values.update({name: value for name, value in zip(node.outputs, made, strict=False) if name})
    missing = [name for name in graph.outputs if name not in values]
    if missing:
        raise InputError(f"{graph.path}: the output {missing[0]!r} is one that is not computed")
    return record.finish([as_tensor(values[name], record) for name in graph.outputs])


def _stand_in(value: Input, side: int) -> Tensor:
    """A tensor without memory, of the input's type and shape."""
    picture = len(value.shape) == 4 and value.shape[1:] == (None, None, None)
    free = [_BATCH, _CHANNELS if picture else side, *[side] * 6]
    shape = [free[i] if n is None else n for i, n in enumerate(value.shape)]
    return torch.empty(shape, dtype=getattr(torch, value.dtype.name), device="meta")


def _called(node: Node, inputs: list[Value], opset: int, record: Recorder) -> tuple[Value, ...]:
    """The node's outputs: on shapes by the functions of SIZES, otherwise (or where those give up) on tensors."""
    if node.op not in TENSORS:
        raise ValueError(f"the operator is not one that is read{did_you_mean(node.op, TENSORS)}")
    if node.op in SIZES and any(isinstance(value, Sizes) for value in inputs):
        sizes = [as_sizes(value) for value in inputs]
        if all(size is not None or value is None for size, value in zip(sizes, inputs, strict=True)):
            if made := _bound(SIZES[node.op], sizes, node.attributes, {}):
                return (made,)
    attributes = {key: record.constant(torch.from_numpy(a)) if hasattr(a, "dtype") else a for key, a in node.attributes.items()}
    function, given = TENSORS[node.op], {"opset": opset, "record": record, "outputs": len(node.outputs)}
    made = _bound(function, _converted(function, inputs, record), attributes, given)
    return made if isinstance(made, tuple) else (made,)


def _bound(function: Callable[..., Any], inputs: list[Any], attributes: dict[str, Any], given: dict[str, Any]) -> Any:
    """function(*inputs, **attributes) and what it asks for of `given`; attributes must be keywords of its own."""
    parameters = inspect.signature(function).parameters.values()
    keywords = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - set(_GIVEN)
    unknown = sorted(set(attributes) - keywords)
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise ValueError(f"the attribute {unknown[0]} is not one that is read")
    asked = {p.name: given[p.name] for p in parameters if p.name in given}
    bound = inspect.signature(function).bind(*inputs, **attributes, **asked)
    return function(*bound.args, **bound.kwargs)


def _converted(function: Callable[..., Any], inputs: list[Value], record: Recorder) -> list[Any]:
    """The inputs as the function's annotations say: Python numbers, or tensors."""
    places = [p for p in inspect.signature(function).parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    converted = []
    for i, value in enumerate(inputs):
        place = places[i] if i < len(places) else None
        if value is None and (place is None or place.default is place.empty):
            raise ValueError(f"input {i + 1} is missing")
        numbers = place is not None and "Numbers" in str(place.annotation)
        converted.append(as_numbers(value) if numbers else as_tensor(value, record))
    return converted


def _line(error: Exception) -> str:
    """The first line of what an exception says, short."""
    text = f"reads {error}, an output that is not computed" if isinstance(error, KeyError) else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0][:300]
