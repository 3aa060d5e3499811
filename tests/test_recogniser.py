"""ONNX recognisers as encoders, against insightface's own class, against onnxruntime on OpenCV's chips, and on people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graphs import model, saved

from diffsfsr import weights
from diffsfsr.encoders import ENCODERS, IDENTITY, Encoder, load_encoder, recogniser
from diffsfsr.encoders.recogniser import RECIPES, OnnxRecogniser
from diffsfsr.encoders.warp import TEMPLATES, five_points
from diffsfsr.errors import InputError, NotReady
from diffsfsr.face.alignment import AlignedFace, align_all
from diffsfsr.face.images import read, to_tensor

HERE = ("mobilefacenet_arcface", "mobileface_v2", "reid0095")


@pytest.fixture(scope="module")
def encoders(weights_dir: Path) -> dict[str, OnnxRecogniser]:
    if missing := [name for name in HERE if not (weights_dir / f"{name}.onnx").is_file()]:
        pytest.skip(f"{missing[0]}.onnx is not among the weights")
    return {name: OnnxRecogniser(name) for name in HERE}


@pytest.fixture(scope="module")
def group(six_people: Path) -> tuple[np.ndarray, list[AlignedFace]]:
    image = read(six_people)
    return image, align_all(image, 128)


def crops(faces: list[AlignedFace]) -> tuple[torch.Tensor, torch.Tensor]:
    return to_tensor(np.stack([f.crop for f in faces])), torch.from_numpy(np.stack([f.crop_landmarks for f in faces]))


def from_picture(encoder: Encoder, image: np.ndarray, faces: list[AlignedFace]) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([encoder(to_tensor(image), torch.from_numpy(f.landmarks)[None]) for f in faces])


# --- against others -----------------------------------------------------------------------------------------------------


def small_arcface(path: Path) -> Path:
    """A network of the form of insightface's: `input.1` (any, 3, 112, 112) -> (any, 512); random weights, every pixel counts."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    g = np.random.default_rng(0)
    shapes = {"w": (6, 3, 7, 7), "slope": (6, 1, 1), "head": (512, 6 * 16 * 16), "bias": (512,)}
    tensors = [numpy_helper.from_array(g.normal(0, 0.2, shape).astype(np.float32), name) for name, shape in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["input.1", "w"], ["c"], "Conv_0", kernel_shape=[7, 7], strides=[7, 7]),
        helper.make_node("PRelu", ["c", "slope"], ["p"], "PRelu_1"),
        helper.make_node("Flatten", ["p"], ["f"], "Flatten_2"),
        helper.make_node("Gemm", ["f", "head", "bias"], ["683"], "Gemm_3", transB=1),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, *s]) for n, s in (("input.1", [3, 112, 112]), ("683", [512]))]
    graph = helper.make_graph(nodes, "r", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8), path)
    return path


@pytest.mark.parametrize("name", ["w600k_r50", "auraface", "glintr100"])
def test_the_recipe_of_insightfaces_networks_is_its_own(
    name: str, group: tuple[np.ndarray, list[AlignedFace]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Alignment, colour order and scale as ArcFaceONNX has them, from picture to embedding, on a network of that form."""
    from insightface.app.common import Face
    from insightface.model_zoo.arcface_onnx import ArcFaceONNX

    path = small_arcface(tmp_path / "net.onnx")
    monkeypatch.setattr(weights, "resolve", lambda name: path)
    ours, theirs, (image, faces) = OnnxRecogniser(name), ArcFaceONNX(str(path)), group
    got = from_picture(ours, image, faces)
    five = five_points(torch.from_numpy(np.stack([f.landmarks for f in faces]))).numpy()
    bgr = np.ascontiguousarray(image[..., ::-1])
    want = torch.from_numpy(np.stack([theirs.get(bgr, Face(kps=points)) for points in five]))
    assert got.shape == (6, 512) and F.cosine_similarity(got, want).min() > 0.9995
    lengths = got.norm(dim=1) / want.norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(6), atol=2e-3, rtol=0)  # 128 for 127.5 would be off by 4e-3
    swapped = torch.from_numpy(np.stack([theirs.get(image, Face(kps=points)) for points in five]))
    assert F.cosine_similarity(got, swapped).max() < 0.9995  # the colour order shows


# What is expected of each, written down a second time: chip (height, width), five points, what is fed of RGB in 0..255.
A112 = [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
EXPECTED = {
    "mobilefacenet_arcface": ((112, 96), [(x - 8, y) for x, y in A112], lambda x: (x - 127.5) / 128),
    "mobileface_v2": ((112, 112), A112, lambda x: x),
    "reid0095": (
        (128, 128),
        [(40.3928, 59.0815), (87.3757, 59.0815), (64.0336, 81.9847), (44.7324, 105.5606), (83.6399, 105.3788)],
        lambda x: x[..., ::-1],
    ),
}


@pytest.mark.parametrize("name", HERE)
def test_embeddings_are_onnxruntimes_on_opencvs_chips(
    name: str, encoders: dict[str, OnnxRecogniser], group: tuple[np.ndarray, list[AlignedFace]]
) -> None:
    import cv2
    import onnxruntime
    from skimage.transform import SimilarityTransform

    (image, faces), ((height, width), points, feed) = group, EXPECTED[name]
    five = five_points(torch.from_numpy(np.stack([f.landmarks for f in faces]))).numpy()
    fits = [SimilarityTransform.from_estimate(item, np.array(points)).params[:2] for item in five]
    chips = np.stack([feed(cv2.warpAffine(image, fit, (width, height)).astype(np.float32)) for fit in fits])
    session = onnxruntime.InferenceSession(str(weights.resolve(name)), providers=["CPUExecutionProvider"])
    want = session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(chips.transpose(0, 3, 1, 2), np.float32)})[0]
    got = from_picture(encoders[name], image, faces)
    assert got.dtype == torch.float32 and got.shape == (6, encoders[name].dim)
    assert F.cosine_similarity(got, torch.from_numpy(want)).min() > 0.998  # OpenCV rounds samples to whole numbers


# --- what an encoder is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HERE)
def test_people_are_told_apart_from_crops_as_from_the_picture(
    name: str, encoders: dict[str, OnnxRecogniser], group: tuple[np.ndarray, list[AlignedFace]]
) -> None:
    image, faces = group
    with torch.inference_mode():
        batch = F.normalize(encoders[name](*crops(faces)), dim=1)
    whole = F.normalize(from_picture(encoders[name], image, faces), dim=1)
    likeness = batch @ whole.T
    assert likeness.diagonal().min() > 0.9 and (likeness - torch.eye(6)).max() < 0.5


@pytest.mark.parametrize("name", HERE)
def test_a_batch_equals_its_items(name: str, encoders: dict[str, OnnxRecogniser], group: tuple[np.ndarray, list[AlignedFace]]) -> None:
    images, landmarks = crops(group[1])
    with torch.inference_mode():
        batch = encoders[name](images, landmarks)
        single = torch.cat([encoders[name](images[i : i + 1], landmarks[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(batch, single, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", HERE)
def test_it_is_frozen_and_its_gradient_is_the_slope(
    name: str, encoders: dict[str, OnnxRecogniser], group: tuple[np.ndarray, list[AlignedFace]]
) -> None:
    encoder = encoders[name]
    assert isinstance(encoder, Encoder) and encoder.name == name and not encoder.centred and not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    images, landmarks = crops(group[1][:2])
    images.requires_grad_(True)
    with torch.no_grad():
        other = encoder(*crops(group[1][2:4]))
    likeness = F.cosine_similarity(encoder(images, landmarks), other)
    (gradient,) = torch.autograd.grad(likeness.sum(), images)
    assert gradient.isfinite().all() and (gradient.abs().sum((1, 2, 3)) > 0).all()
    step = 0.05 * gradient / gradient.norm()
    with torch.no_grad():
        up, down = (F.cosine_similarity(encoder(images + s, landmarks), other).sum() for s in (step, -step))
    assert ((up - down) / 0.1).item() == pytest.approx(gradient.norm().item(), rel=0.05)  # ReLUs bend on the way


def test_versions_are_of_the_weights_and_the_recipe(encoders: dict[str, OnnxRecogniser], monkeypatch: pytest.MonkeyPatch) -> None:
    versions = [e.version for e in encoders.values()]
    assert len(set(versions)) == 3 and all(len(v) == 64 for v in versions)
    assert OnnxRecogniser("mobileface_v2").version == encoders["mobileface_v2"].version
    monkeypatch.setitem(RECIPES, "mobileface_v2", recogniser.Recipe("A112", 256, bgr=True))
    assert OnnxRecogniser("mobileface_v2").version != encoders["mobileface_v2"].version


# --- the registry -------------------------------------------------------------------------------------------------------


def test_every_name_is_loaded_or_says_what_brings_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIFFSFSR_WEIGHTS", str(tmp_path))
    for name in ENCODERS:
        if name == "dlib":  # comes with a package
            continue
        with pytest.raises(NotReady, match=f"diffsfsr weights pull {weights.files_of(name)[0]}"):
            load_encoder(name)
    with pytest.raises(InputError, match="did you mean mobileface_v2"):
        load_encoder("mobileface")
    with pytest.raises(InputError, match="unknown recogniser 'dlib'"):
        OnnxRecogniser("dlib")


def test_the_zoo_says_what_the_recipes_do() -> None:
    assert {*RECIPES, "dlib", "facenet"} == set(IDENTITY)
    for name, recipe in RECIPES.items():
        entry = weights.ZOO[name]
        assert entry.alignment == recipe.template and ("BGR" in entry.convention) == recipe.bgr, name
        assert str(recipe.size[0]) in entry.convention and (f"{recipe.shift:g}" in entry.convention or not recipe.shift), name
    assert weights.ZOO["facenet"].alignment in TEMPLATES and "160" in weights.ZOO["facenet"].convention


def test_another_network_under_the_name_is_refused(weights_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stands_for(other: str) -> Any:
        return lambda name: weights_dir / f"{other}.onnx"

    for name, other in (("reid0095", "mobileface_v2"), ("mobileface_v2", "mobilefacenet_arcface"), ("w600k_r50", "mobileface_v2")):
        monkeypatch.setattr(weights, "resolve", stands_for(other))
        with pytest.raises(InputError, match=f"{other}.onnx is not {name}: ") as caught:
            OnnxRecogniser(name)
        assert "\n" not in str(caught.value)


def test_a_network_that_gives_no_numbers_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The right shapes, and NaN: nothing may be embedded by it."""
    from onnx import helper

    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["g"]),
        helper.make_node("Sqrt", ["g"], ["y"]),
    ]
    for sign in (1, -1):
        w = np.full((3, 256), sign, np.float32)
        path = saved(tmp_path / "net.onnx", model(nodes, {"x": ["n", 3, 112, 112]}, constants={"w": w}))
        monkeypatch.setattr(weights, "resolve", lambda name: path)  # noqa: B023
        if sign > 0:
            assert OnnxRecogniser("mobileface_v2").dim == 256
            continue
        with pytest.raises(InputError, match="net.onnx is not mobileface_v2, or is damaged"):
            OnnxRecogniser("mobileface_v2")
