"""Published networks in OnnxNet against onnxruntime, on faces; then what a torch module owes: gradients, precisions, copies, tracing."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from graphs import model, saved, session
from onnx import TensorProto, helper
from synthetic import faces
from torch import Tensor

from diffsfsr import weights
from diffsfsr.encoders import onnx_net
from diffsfsr.encoders.blendshapes import BlendshapeEncoder
from diffsfsr.encoders.frozen import weights_version
from diffsfsr.encoders.onnx_net import OnnxNet
from diffsfsr.errors import InputError
from diffsfsr.face.parsing import FaceUnetParser
from diffsfsr.face.pose_networks import FsaNet

RECOGNISERS = ("reid0095", "mobilefacenet_arcface", "mobileface_v2")


@pytest.fixture(scope="module")
def crops(six_people: Path) -> Tensor:
    """Five faces (5, 3, 128, 128), RGB, 0..255."""
    return torch.stack([torch.from_numpy(face.crop).permute(2, 0, 1).float() for face in faces(six_people, 128)[:5]])


def sized(x: Tensor, h: int, w: int) -> Tensor:
    return F.interpolate(x, (h, w), mode="bilinear", antialias=True)


# What each network wants to be given; the two that read another's output are tested apart.
INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "reid0095": lambda x: x.flip(1),
    "mobilefacenet_arcface": lambda x: (sized(x, 112, 96) - 127.5) / 128,
    "mobileface_v2": lambda x: sized(x, 112, 112),
    "facemesh": lambda x: sized(x, 256, 256) / 255,
    "mini_xception": lambda x: sized(x, 64, 64).mean(1, keepdim=True) / 127.5 - 1,
    "face_unet": lambda x: sized(x, 256, 256) / 255,
    "vaelight_encoder": lambda x: x / 127.5 - 1,
}
ONE_AT_A_TIME: dict[str, Callable[[Tensor], Tensor]] = {
    "face_detection_yunet_2026may": lambda x: sized(x, 160, 192).flip(1),
    "fsanet-1x1-iter-688590": lambda x: (sized(x, 64, 64).flip(1) - 127.5) / 128,
    "fsanet-var-iter-688590": lambda x: (sized(x, 64, 64).flip(1) - 127.5) / 128,
}


def difference(path: Path, x: Tensor) -> float:
    """Largest difference from onnxruntime over all outputs, each relative to its own largest value.

    Values below a hundredth are probabilities of what is not there, and onnxruntime's own sigmoid is off by 1e-7.
    """
    net = OnnxNet.load(path)
    want = session(path).run(None, {net.inputs[0]: x.numpy()})
    with torch.inference_mode():
        got = net(x)
    got = got if isinstance(got, tuple) else (got,)
    assert len(net.outputs) == len(got) == len(want) and all(tuple(g.shape) == w.shape for g, w in zip(got, want, strict=True))
    return max(float(np.abs(g.numpy() - w).max() / max(np.abs(w).max(), 0.01)) for g, w in zip(got, want, strict=True))


@pytest.mark.weights
@pytest.mark.parametrize("name", INPUTS)
def test_a_published_network_computes_what_onnxruntime_computes(name: str, weights_dir: Path, crops: Tensor) -> None:
    x = INPUTS[name](crops)
    assert difference(weights_dir / f"{name}.onnx", x[:1]) < 1e-4
    assert difference(weights_dir / f"{name}.onnx", x) < 1e-4


@pytest.mark.weights
@pytest.mark.parametrize("name", ONE_AT_A_TIME)
def test_a_network_for_one_picture_at_a_time(name: str, weights_dir: Path, crops: Tensor) -> None:
    path, x = weights_dir / f"{name}.onnx", ONE_AT_A_TIME[name](crops)
    assert max(difference(path, one) for one in x[:3].split(1)) < 1e-4
    with pytest.raises(InputError, match="exported for one batch size"):
        OnnxNet.load(path)(x)


@pytest.mark.weights
def test_networks_that_read_anothers_output(weights_dir: Path, crops: Tensor) -> None:
    mesh = OnnxNet.load(weights_dir / "facemesh.onnx")(INPUTS["facemesh"](crops))[0]
    chosen = json.loads((weights_dir / "blendshapes.json").read_text())["points"]
    points = mesh.view(-1, 478, 3)[:, chosen, :2].contiguous()
    latents = OnnxNet.load(weights_dir / "vaelight_encoder.onnx")(INPUTS["vaelight_encoder"](crops))
    for name, x in (("blendshapes", points), ("vaelight_decoder", latents)):
        assert isinstance(x, Tensor) and difference(weights_dir / f"{name}.onnx", x[:1]) < 1e-4
        assert difference(weights_dir / f"{name}.onnx", x) < 1e-4


@pytest.mark.weights
@pytest.mark.parametrize("name", RECOGNISERS)
def test_the_gradient_is_the_slope(name: str, weights_dir: Path, crops: Tensor) -> None:
    """Along one direction, in float64, against a central difference."""
    net = OnnxNet.load(weights_dir / f"{name}.onnx").double()
    g = torch.Generator().manual_seed(0)
    x = INPUTS[name](crops[1:3]).double().requires_grad_(True)
    way, weight = torch.randn(x.shape, generator=g).double(), torch.randn(net(x).shape, generator=g).double()
    (gradient,) = torch.autograd.grad((net(x) * weight).sum(), x)
    with torch.no_grad():
        numeric = ((net(x + 1e-7 * way) - net(x - 1e-7 * way)) * weight).sum() / 2e-7
    assert (gradient * way).sum().item() == pytest.approx(numeric.item(), rel=1e-4)
    assert all(gradient[i].abs().max() > 0 for i in range(2))


@pytest.mark.weights
@pytest.mark.parametrize("name", RECOGNISERS)
def test_bfloat16_is_near(name: str, weights_dir: Path, crops: Tensor) -> None:
    net, x = OnnxNet.load(weights_dir / f"{name}.onnx"), INPUTS[name](crops)
    with torch.inference_mode():
        want = net(x)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = net(x)
        low = net.to(torch.bfloat16)(x)
    assert mixed.dtype == low.dtype == torch.float32 and not torch.equal(low, want)
    assert torch.cosine_similarity(mixed, want).min() > 0.999 and torch.cosine_similarity(low, want).min() > 0.995


@pytest.mark.weights
def test_a_net_is_a_good_module(weights_dir: Path, crops: Tensor) -> None:
    """Frozen; copied, pickled, loaded strictly from its own state, traced and compiled without a break: always the same numbers."""
    net, x = OnnxNet.load(weights_dir / "mobileface_v2.onnx"), INPUTS["mobileface_v2"](crops)
    want = net(x)
    assert not net.training and not any(p.requires_grad for p in net.parameters()) and not want.requires_grad
    other = OnnxNet.load(weights_dir / "mobileface_v2.onnx")
    for buffer in other.buffers():
        buffer.zero_()
    assert not torch.equal(other(x), want) and weights_version(other, "") != weights_version(net, "")
    other.load_state_dict(net.state_dict(), strict=True)
    assert weights_version(other, "") == weights_version(net, "")
    assert all(b.is_contiguous(memory_format=torch.channels_last) for b in net.buffers() if b.dim() == 4)
    traced = torch.fx.symbolic_trace(net.body)
    for same in (other, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(same(x), want) and (same.inputs, same.outputs, same.input_shapes) == (net.inputs, net.outputs, net.input_shapes)
    assert torch.equal(traced(x)[0], want)


class Twice(torch.nn.Module):
    def __init__(self, net: OnnxNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return self.net(2 * x)


def shaper(path: Path, free: bool = True) -> OnnxNet:
    """Reshapes by arithmetic on its input's shape, resizes, pads by the shape: what exporters write. x (B, 4, H, W)."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["b"]),
        helper.make_node("Gather", ["s", "two"], ["h"]),
        helper.make_node("Unsqueeze", ["b", "axis"], ["b1"]),
        helper.make_node("Unsqueeze", ["h", "axis"], ["h1"]),
        helper.make_node("Mul", ["h1", "double"], ["h2"]),
        helper.make_node("Div", ["h1", "double"], ["half"]),
        helper.make_node("Cast", ["half"], ["half_f"], to=TensorProto.FLOAT),
        helper.make_node("Floor", ["half_f"], ["floored"]),
        helper.make_node("Cast", ["floored"], ["half_i"], to=TensorProto.INT64),
        helper.make_node("Concat", ["b1", "double", "double", "h1", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["r"]),
        helper.make_node("Concat", ["b1", "four", "h2", "half_i"], ["sizes"], axis=0),
        helper.make_node("Resize", ["x", "", "", "sizes"], ["z"], mode="linear"),
        helper.make_node("Equal", ["b1", "minus"], ["wild"]),
        helper.make_node("Where", ["wild", "double", "b1"], ["bb"]),
        helper.make_node("Concat", ["bb", "five"], ["wide"], axis=0),
        helper.make_node("ConstantOfShape", ["wide"], ["ones"], value=helper.make_tensor("", TensorProto.FLOAT, [1], [1.0])),
        helper.make_node("Expand", ["row", "wide"], ["e"]),
        helper.make_node("Equal", ["wide", "one_five"], ["same"]),
        helper.make_node("Where", ["same", "nines", "wide"], ["picked"]),
        helper.make_node("Neg", ["r"], ["y"]),
        helper.make_node("Cast", ["h"], ["hf"], to=TensorProto.FLOAT),
        helper.make_node("Sqrt", ["hf"], ["root"]),
        helper.make_node("Mul", ["e", "root"], ["product"]),
        helper.make_node("Add", ["product", "ones"], ["scaled"]),
    ]
    ints = {
        "double": [2],
        "axis": [0],
        "rest": [-1],
        "four": [4],
        "five": [5],
        "minus": [-1],
        "one_five": [1, 5],
        "nines": [9, 9],
        "zero": 0,
        "two": 2,
    }
    constants = {name: np.array(value, np.int64) for name, value in ints.items()} | {"row": np.arange(5, dtype=np.float32)[None]}
    shape = ["batch", 4, "height", "width"] if free else [5, 4, 6, 8]
    return OnnxNet.load(saved(path, model(nodes, {"x": shape}, ["y", "z", "scaled", "s", "picked"], constants)))


def test_arithmetic_on_shapes_follows_the_input(tmp_path: Path) -> None:
    net, reference = shaper(tmp_path / "shaper.onnx"), session(tmp_path / "shaper.onnx")
    for shape in ((1, 4, 6, 8), (5, 4, 9, 4), (2, 4, 64, 64)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        for got, want in zip(net(x), reference.run(None, {"x": x.numpy()}), strict=True):
            np.testing.assert_allclose(got.numpy(), want, rtol=1e-6, atol=1e-6)
    assert "tolist" not in net.body.code and "numpy" not in net.body.code


def test_tracing_and_compiling_enter_without_a_break(tmp_path: Path) -> None:
    """As part of a larger module; `fullgraph` raises at the first thing that the compiler cannot follow. The batch stays free."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], auto_pad="SAME_UPPER", strides=[2, 2]),
        helper.make_node("Resize", ["c", "", "by"], ["r"], mode="nearest", coordinate_transformation_mode="half_pixel"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    constants = {"w": rng.normal(size=(6, 3, 3, 3)).astype(np.float32), "by": np.array([1, 1, 1.5, 2], np.float32)}
    net = OnnxNet.load(saved(tmp_path / "conv.onnx", model(nodes, {"x": ["n", 3, 9, 9]}, constants=constants)))
    copied, traced = pickle.loads(pickle.dumps(net)), torch.fx.symbolic_trace(Twice(net))
    compiled = torch.compile(Twice(net), backend="eager", fullgraph=True, dynamic=True)
    for batch in (2, 5):
        x = torch.randn(batch, 3, 9, 9)
        assert torch.equal(copied(x), net(x)) and torch.equal(traced(x), net(2 * x))
        assert torch.equal(compiled(x), net(2 * x))


def test_what_is_constant_is_computed_once(tmp_path: Path) -> None:
    """All but convolutions, whose working memory cannot be foreseen."""
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"]),
        helper.make_node("Mul", ["t", "two"], ["doubled"]),
        helper.make_node("Add", ["x", "doubled"], ["y"]),
        helper.make_node("Conv", ["picture", "kernel"], ["made"]),
        helper.make_node("Add", ["x", "made"], ["z"]),
        helper.make_node("Cast", ["whole"], ["to"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "to"], ["more"]),
    ]
    constants = {
        "w": np.arange(6, dtype=np.float32).reshape(3, 2),
        "two": np.array(2, np.float32),
        "unused": np.ones(3, np.float32),
        "whole": np.array([4]),
    }
    constants |= {"picture": np.ones((1, 1, 4, 5), np.float32), "kernel": np.ones((1, 1, 3, 3), np.float32)}
    path = saved(tmp_path / "net.onnx", model(nodes, {"x": ["n", 3]}, ["y", "z", "more"], constants))
    net, x = OnnxNet.load(path), np.zeros((2, 3), np.float32)
    for got, want in zip(net(torch.from_numpy(x)), session(path).run(None, {"x": x}), strict=True):
        np.testing.assert_array_equal(got.numpy(), want)
    assert sorted(len(value.shape) for value in net.state_dict().values()) == [1, 2, 4, 4]
    assert "permute(" not in net.body.code and " * " not in net.body.code and "conv2d" in net.body.code


def test_dtype_follows_the_input(tmp_path: Path) -> None:
    """Results come in the input's dtype; integers stay integers."""
    net = shaper(tmp_path / "shaper.onnx").to(torch.bfloat16)
    y, *_, sizes = net(torch.randn(1, 4, 6, 8, dtype=torch.float64))
    assert y.dtype == torch.float64 and sizes.dtype == torch.int64


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.zeros(2, 4, 5), r"input x has the shape \(2, 4, 5\), where \(any, 4, any, any\) belongs"),
        (torch.zeros(2, 3, 5, 5), r"input x has the shape \(2, 3, 5, 5\)"),
        (torch.zeros(2, 4, 5, 5, dtype=torch.uint8), "input x is torch.uint8, where floating-point numbers belong"),
    ],
)
def test_an_input_that_does_not_fit_is_named(x: Tensor, said: str, tmp_path: Path) -> None:
    net = shaper(tmp_path / "shaper.onnx")
    with pytest.raises(InputError, match=said):
        net(x)
    with pytest.raises(InputError, match=r"takes 1 inputs \(x\), not 2"):
        net(x, x)


@pytest.mark.parametrize("shape", [["n", "c", "h", "w"], ["n", 3, "h", "w"], ["n", 3, 112, "w"]])
def test_sizes_that_are_free_are_found_by_trying(shape: list[int | str], tmp_path: Path) -> None:
    """The head takes pictures of 112 only, which the file does not say."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], strides=[28, 28]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["y"]),
    ]
    constants = {"w": rng.normal(size=(2, 3, 28, 28)).astype(np.float32), "m": rng.normal(size=(32, 4)).astype(np.float32)}
    path = saved(tmp_path / "net.onnx", model(nodes, {"x": shape}, constants=constants))
    x = rng.normal(size=(5, 3, 112, 112)).astype(np.float32)
    (want,) = session(path).run(None, {"x": x})
    got = OnnxNet.load(path)(torch.from_numpy(x))
    assert isinstance(got, Tensor) and got.shape == (5, 4)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-4, atol=1e-3)


def test_a_net_loaded_under_inference_mode_still_has_gradients(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Neg", ["w"], ["m"]),
        helper.make_node("MatMul", ["x", "m"], ["p"]),
        helper.make_node("Mul", ["p", "p"], ["y"]),
    ]
    saved(tmp_path / "net.onnx", model(nodes, {"x": ["n", 2]}, constants={"w": np.eye(2, dtype=np.float32)}))
    with torch.inference_mode():
        net = OnnxNet.load(tmp_path / "net.onnx")
    x = torch.tensor([[1.0, 3.0]], requires_grad=True)
    net(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[2.0, 6.0]]


def test_a_batch_fixed_at_export_is_kept(tmp_path: Path) -> None:
    net = shaper(tmp_path / "shaper.onnx", free=False)
    assert net.input_shapes == ((5, 4, 6, 8),) and net(torch.zeros(5, 4, 6, 8))[0].shape == (5, 2, 2, 6, 8)
    with pytest.raises(InputError, match=r"\(4, 4, 6, 8\), where \(5, 4, 6, 8\) belongs .it was exported for one batch size"):
        net(torch.zeros(4, 4, 6, 8))


# --- a trial when it is loaded ----------------------------------------------------------------------------------------

FLAT = [helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Flatten", ["p"], ["f"])]
TRIALS: dict[str, tuple[list[onnx.NodeProto], str]] = {
    "index": (
        [
            helper.make_node("ArgMax", ["f"], ["i"], axis=1, keepdims=0),
            helper.make_node("Add", ["i", "far"], ["j"]),
            helper.make_node("Gather", ["table", "j"], ["y"]),
        ],
        "is not net: index 99[0-9] is out of bounds",
    ),
    "nan": ([helper.make_node("Neg", ["f"], ["n"]), helper.make_node("Log", ["n"], ["y"])], "is not net, or is damaged: .* no numbers"),
    "infinite": ([helper.make_node("Div", ["f", "none"], ["y"])], "no numbers"),
    "shape": ([helper.make_node("Concat", ["f", "f"], ["y"], axis=1)], r"is not net: it turns \[\(2, 3, 9, 9\)\] into \[\(2, 6\)\]"),
}


@pytest.mark.parametrize("kind", TRIALS)
def test_what_comes_of_a_trial_is_one_line_with_the_files_name(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    nodes, said = TRIALS[kind]
    constants = {"far": np.array(990), "table": np.ones((5, 3), np.float32), "none": np.zeros(1, np.float32)}
    path = saved(tmp_path / "net.onnx", model([*FLAT, *nodes], {"x": ["n", 3, 9, 9]}, constants=constants))
    x = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=said) as caught:
        OnnxNet.tried("net", path, x, gives=[(2, 3)])
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_whatever_a_file_raises_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what no operator raises: too little memory, a graph that torch.fx cannot finish."""
    path = saved(tmp_path / "net.onnx", model(FLAT, {"x": ["n", 3, 9, 9]}, outputs=["f"]))

    def fails(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(onnx_net.Recorder, "finish", fails)
    with pytest.raises(InputError, match=f"{path}: MemoryError"):
        OnnxNet.load(path)


@pytest.mark.parametrize(
    ("loader", "name", "shapes"),
    [
        (BlendshapeEncoder, "facemesh", {"x": ["n", 3, 256, 256]}),
        (FaceUnetParser, "face_unet", {"x": ["n", 3, 256, 256]}),
        (FsaNet, "fsanet-1x1", {"x": [1, 3, 64, 64]}),
    ],
)
def test_every_loader_tries_its_network(
    loader: Callable[[], object], name: str, shapes: dict[str, list[int | str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that takes what the right one takes, and gives something else."""
    path = saved(tmp_path / "net.onnx", model(FLAT[:1], shapes, outputs=["p"]))
    monkeypatch.setattr(weights, "resolve", lambda name: path)
    with pytest.raises(InputError, match=f"net.onnx is not {name}: it turns"):
        loader()
