"""Hostile ONNX files: each ends in one line that names the file and what is wrong with it, at once and without a large allocation."""

from __future__ import annotations

import os
import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from graphs import model, saved, session
from onnx import TensorProto, helper, numpy_helper

from diffsfsr.encoders.onnx_file import read_graph
from diffsfsr.encoders.onnx_net import OnnxNet
from diffsfsr.errors import InputError

SHAPES = {"w": (4, 3, 3, 3), "b": (4,), "slope": (4, 1, 1), "m": (5, 64)}


def network() -> onnx.ModelProto:
    """A small network with most of what a file can hold: (batch, 3, 8, 8) -> (batch, 5)."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("PRelu", ["c", "slope"], ["p"], name="act"),
        helper.make_node("Constant", [], ["target"], name="shape", value=numpy_helper.from_array(np.array([0, -1]), "t")),
        helper.make_node("Reshape", ["p", "target"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "m"], ["y"], name="head", transB=1, alpha=0.5),
    ]
    constants = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    return model(nodes, {"x": ["batch", 3, 8, 8]}, constants=constants)


def one(op: str, *inputs: str, **more: Any) -> onnx.ModelProto:
    """One node on x (2, 3) and constants; `shape`, `constants`, `opset` and the node's attributes in `more`."""
    shape, constants, opset = more.pop("shape", [2, 3]), more.pop("constants", {}), more.pop("opset", 17)
    return model([helper.make_node(op, ["x", *inputs], ["y"], name="it", **more)], {"x": shape}, constants=constants, opset=opset)


def grown() -> int:
    """Largest memory this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def refused(path: Path, said: str) -> None:
    """Loading fails with one line that names the file and matches `said`, and takes no memory worth speaking of."""
    before = grown()
    with pytest.raises(InputError, match=said) as caught:
        OnnxNet.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600 + len(str(path))
    assert grown() - before < 300_000_000


def test_a_sound_file_is_read(tmp_path: Path) -> None:
    graph = read_graph(saved(tmp_path / "net.onnx", network()))
    assert (graph.opset, graph.outputs, [node.op for node in graph.nodes]) == (17, ("y",), ["Conv", "PRelu", "Constant", "Reshape", "Gemm"])
    assert [(i.name, i.shape, i.dtype) for i in graph.inputs] == [("x", (None, 3, 8, 8), np.float32)]
    assert [(name, value.shape) for name, value in graph.constants.items()] == list(SHAPES.items())
    assert graph.nodes[0].attributes == {"pads": [1, 1, 1, 1], "strides": [2, 2]}
    assert graph.nodes[4].attributes == {"transB": 1, "alpha": 0.5}


def test_odd_names_are_only_names(tmp_path: Path) -> None:
    """A network's code is generated: no name from a file may get into it as anything else."""
    plain = "def training forward print 0 self graph c_def a.b/c:d ' x);import\tos;("
    names = [*plain.split(" "), "\u00e9", "", "n" * 5000, "\n"]
    values = {name or "blank": np.array([float(i)], np.float32) for i, name in enumerate(names)}
    chain = ["in-put", *(f"sum {i};" for i in range(len(values) - 1)), "class"]
    nodes = [helper.make_node("Add", [chain[i], name], [chain[i + 1]]) for i, name in enumerate(values)]
    net = OnnxNet.load(saved(tmp_path / "net.onnx", model(nodes, {"in-put": [1]}, outputs=["class"], constants=values)))
    assert net(torch.zeros(1)).item() == sum(range(len(names))) and net.inputs == ("in-put",) and len(net.state_dict()) == len(names)


def test_what_is_no_onnx_file(tmp_path: Path) -> None:
    junk = tmp_path / "junk.onnx"
    for content in (
        b"",
        b"<html>not found</html>",
        b"\0" * 1000,
        random.Random(0).randbytes(10_000_000),
        b"version https://git-lfs.github.com/spec/v1\n",
    ):
        junk.write_bytes(content)
        refused(junk, "not an ONNX file")
    refused(tmp_path, "is not a file|cannot be read")
    refused(tmp_path / "absent.onnx", "cannot be read: No such file")
    os.mkfifo(tmp_path / "pipe.onnx")
    refused(tmp_path / "pipe.onnx", "is not a file")
    os.truncate(saved(tmp_path / "huge.onnx", network()), 1 << 40)
    refused(tmp_path / "huge.onnx", "more than the 1073741824 that are read")


def test_a_file_cut_off_anywhere(tmp_path: Path) -> None:
    whole, path = network().SerializeToString(), tmp_path / "net.onnx"
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(InputError):
            OnnxNet.load(path)


def test_a_flipped_bit_is_refused_or_means_what_onnxruntime_takes_it_to_mean(tmp_path: Path) -> None:
    whole, rng = network().SerializeToString(), random.Random(0)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    bulk = {i for name in ("w", "m") for i in _span(whole, network(), name)}  # a flipped weight is just another weight
    places = [i for i in range(len(whole)) if i not in bulk]
    before, agreed, refusals = grown(), 0, 0
    for _ in range(600):
        place, path = rng.choice(places), tmp_path / "net.onnx"
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :])
        try:
            got = OnnxNet.load(path)(x)
        except InputError:
            refusals += 1
            continue
        try:
            want = session(path).run(None, {OnnxNet.load(path).inputs[0]: x.numpy()})[0]
        except Exception:
            continue  # what it refuses over a name, a version or a comment
        assert isinstance(got, torch.Tensor)
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-4, atol=1e-4)
        agreed += 1
    assert agreed > 50 and refusals > 200 and grown() - before < 300_000_000


def _span(whole: bytes, made: onnx.ModelProto, name: str) -> range:
    raw = next(t.raw_data for t in made.graph.initializer if t.name == name)
    return range(whole.index(raw), whole.index(raw) + len(raw))


# --- what a graph may not hold ----------------------------------------------------------------------------------------


def changed(change: Callable[[onnx.ModelProto], Any]) -> onnx.ModelProto:
    made = network()
    change(made)
    return made


def body() -> onnx.GraphProto:
    return helper.make_graph([], "inner", [], [])


def twice(m: onnx.ModelProto) -> None:
    m.graph.initializer.append(m.graph.initializer[0])


def circle(m: onnx.ModelProto) -> None:
    m.graph.node[0].input[0] = "f"


def rude(m: onnx.ModelProto) -> None:
    m.graph.node[0].name, m.graph.node[0].op_type = "\x1b[2J\n" * 50, "Nothing"


def loop() -> onnx.ModelProto:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Add", ["v", "v"], ["v2"])],
        "body",
        [helper.make_tensor_value_info(n, t, []) for n, t in (("i", 7), ("c", 9), ("v", 1))],
        [helper.make_tensor_value_info(n, t, []) for n, t in (("c2", 9), ("v2", 1))],
    )
    forever = {"most": np.array(2**62), "go": np.array(True)}
    return model([helper.make_node("Loop", ["most", "go", "x"], ["y"], name="round", body=inner)], {"x": []}, constants=forever)


FORBIDDEN: list[tuple[Callable[[], onnx.ModelProto], str]] = [
    (loop, r"node 'round' \(Loop\) is control flow"),
    (lambda: one("If", then_branch=body(), else_branch=body()), "control flow"),
    (lambda: one("Scan", body=body()), "control flow"),
    (lambda: one("Relu", body=body()), r"node 'it' \(Relu\): the attribute body is of kind GRAPH"),
    (lambda: one("Relu", domain="com.microsoft"), "operator domain 'com.microsoft'"),
    (lambda: one("Frobnicate"), r"node 'it' \(Frobnicate\), opset 17: the operator is not one that is read"),
    (lambda: one("Conw", shape=[1, 3, 4, 4]), r"\(Conw\), opset 17.*did you mean Conv\?"),
    (lambda: one("Relu", alpha=2.0), r"node 'it' \(Relu\), opset 17: the attribute alpha is not one that is read"),
    (lambda: one("Relu", opset=6), "written for opset 6"),
    (lambda: one("Relu", opset=99), "written for opset 99"),
    (lambda: changed(lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx", 11))), "names 2 versions"),
    (lambda: changed(lambda m: m.ClearField("opset_import")), "holds no graph"),
    (lambda: changed(lambda m: m.ClearField("graph")), "holds no graph"),
    (lambda: changed(lambda m: m.graph.ClearField("output")), "no inputs or no outputs"),
    (lambda: changed(circle), r"node 'conv' \(Conv\) reads 'f', which is made only by itself or later: a cycle"),
    (lambda: changed(lambda m: m.graph.node[0].input.insert(1, "nothing")), "reads 'nothing', which nobody makes"),
    (lambda: changed(lambda m: m.graph.node[1].output.__setitem__(0, "c")), "'c' is made twice"),
    (lambda: changed(lambda m: m.graph.node[0].output.__setitem__(0, "w")), "'w' is made twice"),
    (lambda: changed(lambda m: m.graph.input.append(m.graph.input[0])), "'x' is made twice"),
    (lambda: changed(twice), "'w' has no name of its own"),
    (lambda: changed(lambda m: m.graph.output[0].__setattr__("name", "z")), "output 'z' is made by no node"),
    (lambda: changed(rude), r"node '\\x1b\[2J\\n.*\.\.\.' \(Nothing\), opset 17"),
    (lambda: changed(lambda m: m.graph.input[0].type.tensor_type.ClearField("shape")), "known number of dimensions"),
    (lambda: changed(lambda m: m.graph.input[0].type.tensor_type.__setattr__("elem_type", 8)), "not a tensor of numbers"),
    (lambda: changed(lambda m: m.graph.sparse_initializer.add()), "sparse"),
    (lambda: changed(lambda m: m.graph.node[0].attribute.append(helper.make_attribute("pads", [9]))), "the attribute 'pads' twice"),
]


@pytest.mark.parametrize(("make", "said"), FORBIDDEN, ids=lambda v: v if isinstance(v, str) else "")
def test_what_a_graph_may_not_hold(make: Callable[[], onnx.ModelProto], said: str, tmp_path: Path) -> None:
    refused(saved(tmp_path / "net.onnx", make()), said)


# --- tensors that are not what they say -------------------------------------------------------------------------------


def weight(change: Callable[[onnx.TensorProto], Any]) -> Callable[[], onnx.ModelProto]:
    return lambda: changed(lambda m: change(m.graph.initializer[0]))


def dims(*values: int) -> Callable[[onnx.TensorProto], None]:
    return lambda t: t.dims.__setitem__(slice(None), values)


LIES: list[tuple[Callable[[onnx.TensorProto], Any], str]] = [
    (dims(4, 3, 3, 4), r"'w' is declared as \[4, 3, 3, 4\], 144 values, but 108 are there"),
    (dims(2**31, 2**31, 2**31), "9903520314283042199192993792 values, but 108 are there"),
    (dims(2**62), "is declared as"),
    (dims(-1, 108), "is declared as"),
    (dims(*[1] * 200, 108), "is declared as"),
    (lambda t: t.ClearField("raw_data"), "but 0 are there"),
    (lambda t: t.__setattr__("raw_data", t.raw_data[:-2]), "but 107.5 are there"),
    (lambda t: t.__setattr__("data_type", TensorProto.INT8), "type 3, which is not read"),
    (lambda t: t.__setattr__("data_type", TensorProto.STRING), "type 8, which is not read"),
    (lambda t: t.__setattr__("data_type", 99), "type 99, which is not read"),
    (lambda t: t.__setattr__("raw_data", np.full(108, np.nan, np.float32).tobytes()), "not numbers"),
]


@pytest.mark.parametrize(("change", "said"), LIES, ids=lambda v: v if isinstance(v, str) else "")
def test_a_tensor_that_is_not_what_it_says(change: Callable[[onnx.TensorProto], Any], said: str, tmp_path: Path) -> None:
    refused(saved(tmp_path / "net.onnx", weight(change)()), said)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.FLOAT])
@pytest.mark.parametrize("raw", [True, False])
def test_other_precisions_become_float32(kind: int, raw: bool, tmp_path: Path) -> None:
    values = np.array([1.5, -0.25, 3.0])
    data = values.astype(helper.tensor_dtype_to_np_dtype(kind)).tobytes() if raw else values
    made = model([helper.make_node("Add", ["x", "c"], ["y"])], {"x": [3]})
    made.graph.initializer.append(helper.make_tensor("c", kind, [3], data, raw=raw))
    assert OnnxNet.load(saved(tmp_path / "net.onnx", made))(torch.zeros(3)).tolist() == values.tolist()


# --- data outside the file --------------------------------------------------------------------------------------------


def external(folder: Path, location: str, **told: Any) -> Path:
    """The network in `folder`, its first weight's data said to be at `location`."""
    made = network()
    tensor = made.graph.initializer[0]
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **told}.items():
        tensor.external_data.add(key=key, value=str(value))
    folder.mkdir(exist_ok=True)
    for place in (folder, folder.parent):
        (place / "data.bin").write_bytes(b"head" + data)
    return saved(folder / "net.onnx", made)


def test_data_in_the_files_own_folder_is_read(tmp_path: Path) -> None:
    path = external(tmp_path / "net", "data.bin", offset=4, length=432)
    (tmp_path / "net" / "deeper").mkdir()
    (tmp_path / "net" / "data.bin").rename(tmp_path / "net" / "deeper" / "data.bin")
    (tmp_path / "net" / "data.bin").symlink_to("deeper/data.bin")
    (w,) = [t for t in network().graph.initializer if t.name == "w"]
    np.testing.assert_array_equal(read_graph(path).constants["w"], numpy_helper.to_array(w))


@pytest.mark.parametrize(
    ("location", "told", "said"),
    [
        ("../data.bin", {}, r"'w' has its data at '../data.bin', outside the file's own folder"),
        ("deep/../../data.bin", {}, "outside"),
        ("/etc/passwd", {}, "outside"),
        ("", {}, "outside"),
        ("a\0b", {}, "outside"),
        ("x" * 5000, {}, "outside|cannot be read"),
        ("out", {}, "outside"),
        ("circle", {}, "outside|cannot be read"),
        (".", {}, "is not a file|cannot be read"),
        ("pipe", {}, "is not a file"),
        ("nothing.bin", {}, "'nothing.bin' cannot be read: No such file"),
        ("data.bin", {"offset": 5}, "has 436 bytes; 432 from 5 were announced"),
        ("data.bin", {"offset": -4}, "432 from -4"),
        ("data.bin", {"offset": 2**70}, "were announced"),
        ("data.bin", {"offset": "four"}, "no number"),
        ("data.bin", {"offset": 4, "length": 2**60}, "needs 432 bytes, but 1152921504606846976 are announced"),
    ],
)
def test_data_elsewhere_is_not_opened(location: str, told: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = external(tmp_path / "net", location, **told)
    (tmp_path / "net" / "out").symlink_to(tmp_path / "data.bin")
    (tmp_path / "net" / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "net" / "pipe")
    refused(path, said)


# --- small files that would grow --------------------------------------------------------------------------------------


def doubled(times: int, first: str) -> onnx.ModelProto:
    """A value put beside itself again and again."""
    nodes = [helper.make_node("Concat", [f"v{i}", f"v{i}"], [f"v{i + 1}"], axis=0) for i in range(times)]
    if first == "shape":
        nodes.insert(0, helper.make_node("Shape", ["x"], ["v0"]))
    constants = {"v0": np.ones(4, np.float32)} if first == "constant" else {}
    inputs = {"v0" if first == "input" else "x": [4]}
    nodes += [] if first == "input" else [helper.make_node("Identity", ["x"], ["z"])]
    return model(nodes, inputs, outputs=[f"v{times}"], constants=constants)


def vector(*values: float) -> np.ndarray:
    return np.array(values, np.int64 if all(isinstance(v, int) for v in values) else np.float32)


def filled(*shape: int) -> onnx.ModelProto:
    nodes = [helper.make_node("ConstantOfShape", ["n"], ["c"], name="fill"), helper.make_node("Add", ["x", "c"], ["y"], name="add")]
    return model(nodes, {"x": [1]}, constants={"n": vector(*shape)})


def squared(times: int, batch: int | str) -> onnx.ModelProto:
    """The batch less one, squared again and again."""
    nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Gather", ["s", "first"], ["b"])]
    nodes += [helper.make_node("Sub", ["b", "one"], ["v0"])]
    nodes += [helper.make_node("Mul", [f"v{i}", f"v{i}"], [f"v{i + 1}"]) for i in range(times)]
    return model(nodes, {"x": [batch, 4]}, outputs=[f"v{times}"], constants={"first": np.array(0), "one": np.array(1)})


COUNTED = {"a": np.array(0), "b": np.array(2**50), "c": np.array(1)}
GROWING: list[tuple[Callable[[], onnx.ModelProto], str]] = [
    (lambda: doubled(26, "constant"), r"\(Concat\).*out of proportion to the file"),
    (lambda: doubled(60, "input"), r"\(Concat\).*makes 536870912 numbers at once"),
    (lambda: doubled(24, "shape"), r"\(Concat\).*a shape of 2048 numbers"),
    (lambda: squared(40, 5), r"node number 7 \(Mul\).*a size that 64 bits do not hold"),  # 4, 16, ... 4 ** 32
    (lambda: squared(40, "batch"), r"node number 9 \(Mul\).*multiplies more than 64 sizes"),  # 1 at a batch of two, and endless at three
    (lambda: filled(2**40), r"node 'fill' \(ConstantOfShape\).*makes 1099511627776 numbers at once"),
    (lambda: filled(2**26), r"node 'fill' \(ConstantOfShape\).*a constant of 67108864 numbers, out of proportion"),
    (lambda: filled(2**40, 2**40), "fill"),
    (lambda: filled(-5), "fill"),
    (lambda: one("Expand", "c", constants={"c": vector(2**30, 2, 3)}), r"node 'it' \(Expand\).*numbers at once"),
    (lambda: one("Tile", "c", constants={"c": vector(2**20, 2**20)}), r"node 'it' \(Tile\).*numbers at once"),
    (lambda: one("Pad", "c", constants={"c": vector(2**40, 0, 0, 0)}), r"node 'it' \(Pad\).*numbers at once"),
    (lambda: one("Pad", "c", constants={"c": vector(2**62, 0, 2**62, 0)}), r"node 'it' \(Pad\)"),
    (lambda: one("Resize", "", "c", shape=[1, 1, 64, 64], constants={"c": vector(1.0, 1.0, 900.0, 900.0)}), "numbers at once"),
    (lambda: one("Resize", "", "c", shape=[1, 1, 64, 64], constants={"c": vector(1.0, 1.0, 1e30, 1.0)}), "the scales"),
    (lambda: one("Resize", "", "", "c", shape=[1, 1, 64, 64], constants={"c": vector(1, 1, 2**31, 2**31)}), r"\(Resize\)"),
    (
        lambda: model(
            [helper.make_node("Range", ["a", "b", "c"], ["y"], name="it")],
            {"x": [1]},
            constants=COUNTED,
        ),
        "numbers",
    ),
    (lambda: one("Conv", "w", shape=[1, 1, 4, 4], constants={"w": np.ones((1, 1, 1, 1), np.float32)}, pads=[2**20] * 4), "numbers at once"),
    (lambda: one("Relu", shape=[2**30, 2**30]), "integer multiplication overflow|numbers|Storage"),
    (lambda: one("Split", axis=0, shape=[2**31]), "numbers"),
    (lambda: one("Einsum", "x", "x", equation="ij,kl,mn->"), "too many positional arguments"),
]


@pytest.mark.parametrize(("make", "said"), GROWING, ids=lambda v: v if isinstance(v, str) else "")
def test_a_small_file_does_not_grow(make: Callable[[], onnx.ModelProto], said: str, tmp_path: Path) -> None:
    refused(saved(tmp_path / "net.onnx", make()), said)


def test_a_message_of_nothing_but_small_messages_is_not_parsed(tmp_path: Path) -> None:
    """Ten million bytes that protobuf would turn into a gigabyte."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2]) + _varint(len(content)) + content

    path = tmp_path / "net.onnx"
    for graph in (field(1, b"") * 5_000_000, field(1, field(5, b"") * 5_000_000), field(5, field(13, b"") * 5_000_000)):
        path.write_bytes(field(7, graph) + field(8, b"\x10\x11"))
        refused(path, "more than 16777216 bytes beside the numbers")


def _varint(n: int) -> bytes:
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + _varint(n >> 7)


def test_twenty_thousand_nodes_are_enough(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(20_001)]
    refused(saved(tmp_path / "net.onnx", model(nodes, {"v0": [1]}, outputs=["v20001"])), "20001 nodes")


@pytest.mark.parametrize(
    ("node", "shape", "said"),
    [
        (helper.make_node("Conv", ["x", "w"], ["y"], name="it", group=0), [1, 4, 5, 5], r"\(Conv\)"),
        (helper.make_node("Conv", ["x", "w"], ["y"], name="it", strides=[0, 0]), [1, 4, 5, 5], r"\(Conv\)"),
        (helper.make_node("Conv", ["x", "w"], ["y"], name="it", strides=[0, 0], auto_pad="SAME_UPPER"), [1, 4, 5, 5], r"\(Conv\)"),
        (helper.make_node("Conv", ["x", "w"], ["y"], name="it", dilations=[-1, 1]), [1, 4, 5, 5], r"\(Conv\)"),
        (helper.make_node("Conv", ["x", "w"], ["y"], name="it", pads=[1]), [1, 4, 5, 5], "1 pads for 2 axes"),
        (helper.make_node("Conv", ["x", "w"], ["y"], name="it", kernel_shape=[5, 5]), [1, 4, 5, 5], r"kernel_shape=\[5, 5\] is not read"),
        (helper.make_node("Conv", ["x", "w"], ["y"], name="it", auto_pad="MAYBE"), [1, 4, 5, 5], "auto_pad='MAYBE'"),
        (helper.make_node("Conv", ["x", "w"], ["y"], name="it"), [1, 7, 5, 5], r"\(Conv\).*channel"),
        (helper.make_node("Conv", ["x"], ["y"], name="it"), [1, 4, 5, 5], r"missing a required argument: 'weight'"),
        (helper.make_node("Conv", ["x", ""], ["y"], name="it"), [1, 4, 5, 5], "input 2 is missing"),
        (helper.make_node("MaxPool", ["x"], ["y"], name="it", kernel_shape=[0, 0]), [1, 4, 5, 5], r"\(MaxPool\)"),
        (
            helper.make_node("MaxPool", ["x"], ["y"], name="it", kernel_shape=[2, 2], strides=[0, 0], ceil_mode=1),
            [1, 4, 5, 5],
            r"\(MaxPool\)",
        ),
        (helper.make_node("Transpose", ["x"], ["y"], name="it", perm=[0, 0, 0, 0]), [1, 4, 5, 5], r"\(Transpose\)"),
        (helper.make_node("Gather", ["x", "far"], ["y"], name="it", axis=1), [1, 4, 5, 5], "reads places -5 to 4 of 4"),
        (helper.make_node("GatherElements", ["x", "far"], ["y"], name="it"), [4, 2], "reads places -5 to 4 of 4"),
        (helper.make_node("Flatten", ["x"], ["y"], name="it", axis=9), [1, 4, 5, 5], "axis 9 of a value of 4 dimensions"),
        (helper.make_node("Softmax", ["x"], ["y"], name="it", axis=-9), [1, 4, 5, 5], r"\(Softmax\)"),
        (helper.make_node("DepthToSpace", ["x"], ["y"], name="it", blocksize=0), [1, 4, 5, 5], r"\(DepthToSpace\)"),
        (helper.make_node("Cast", ["x"], ["y"], name="it", to=99), [1, 4, 5, 5], "to=99"),
        (helper.make_node("Resize", ["x", "", "w"], ["y"], name="it", mode="cubist"), [1, 4, 5, 5], r"\(Resize\)"),
        (helper.make_node("Reshape", ["x", "x"], ["y"], name="it"), [1, 4, 5, 5], "computed from the picture"),
        (
            helper.make_node("BatchNormalization", ["x", "b", "b", "b", "b"], ["y"], name="it", training_mode=1),
            [1, 4, 5, 5],
            "training_mode=1",
        ),
        (helper.make_node("LeakyRelu", ["x"], ["y"], name="it", alpha="much"), [1, 4, 5, 5], r"\(LeakyRelu\)"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_settings_that_make_no_sense_are_named(node: onnx.NodeProto, shape: list[int], said: str, tmp_path: Path) -> None:
    constants = {"w": np.ones((4, 4, 3, 3), np.float32), "b": np.ones(4, np.float32), "far": np.array([[-5, 4]])}
    refused(saved(tmp_path / "net.onnx", model([node], {"x": shape}, constants=constants)), said)
