"""The baselines against scikit-image's own transforms, onnxruntime, and photographs whose right answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffsfsr import weights
from diffsfsr.config import Data
from diffsfsr.errors import InputError, NotReady
from diffsfsr.evaluation import baselines
from diffsfsr.evaluation.baselines import AlphaPaste, InSwapper, LandmarkWarp, RealPhoto, Untouched
from diffsfsr.evaluation.items import Faces, Item
from diffsfsr.evaluation.methods import found_again
from diffsfsr.face.alignment import align, align_all
from diffsfsr.face.images import read
from diffsfsr.face.masks import hull_mask
from diffsfsr.face.warping import transform

SIDE = 128


@pytest.fixture(scope="module")
def faces(six_people: Path, tom_hanks: Path, astronaut: Path) -> Faces:
    """Six people, then a man who smiles with open mouth, then a woman who smiles."""
    found = [*align_all(read(six_people), SIDE), *(align(read(path), SIDE, Data(max_outside=1.0)) for path in (tom_hanks, astronaut))]
    names = [f"face-{i}" for i in range(len(found))]
    landmarks = np.stack([face.crop_landmarks for face in found]).astype(np.float32)
    return Faces(names, names, [face.crop for face in found], landmarks)


def made(method: baselines.Method, *items: Item) -> list[np.ndarray]:
    pictures = method(items, range(len(items)))
    assert all(p is not None and p.shape == (SIDE, SIDE, 3) and p.dtype == np.uint8 for p in pictures)
    return pictures  # type: ignore[return-value]


# --- floor and ceiling --------------------------------------------------------------------------------------------------


def test_the_floor_is_the_scene(faces: Faces) -> None:
    first, second = made(Untouched(faces), Item(3, 1, 2), Item(0, 1, 2))
    assert np.array_equal(first, faces.crops[3]) and np.array_equal(second, faces.crops[0])


def test_the_ceiling_is_another_photograph_of_the_person() -> None:
    """ann has three photographs, bob one; who has no name is nobody else's second photograph."""
    people = ["ann", "bob", "ann", "", "ann", ""]
    crops = [np.full((4, 4, 3), i, np.uint8) for i in range(6)]
    ceiling = RealPhoto(Faces([f"f{i}" for i in range(6)], people, crops, np.zeros((6, 68, 2))))

    def chosen(item: Item) -> set[int]:
        pictures = [ceiling([item], [seed])[0] for seed in range(20)]
        return {-1 if p is None else int(p[0, 0, 0]) for p in pictures}

    assert chosen(Item(1, 0, 1)) == {2, 4}  # never the identity image itself
    assert chosen(Item(2, 0, 1)) == {4}  # nor the scene
    assert chosen(Item(0, 1, 0)) == {-1} and chosen(Item(0, 3, 0)) == {-1}
    assert np.array_equal(ceiling([Item(1, 0, 1)], [7])[0], ceiling([Item(1, 0, 1)], [7])[0])  # type: ignore[arg-type]


# --- geometry -----------------------------------------------------------------------------------------------------------


def test_affinity_is_scikit_images_least_squares() -> None:
    rng = np.random.default_rng(1)
    source, true = rng.normal(50, 20, (24, 2)), np.array([[1.1, 0.2, 4.0], [-0.1, 0.9, -7.0]])
    np.testing.assert_allclose(baselines.affinity(source, transform(source, true)), true, atol=1e-9)
    target = transform(source, true) + rng.normal(0, 2, source.shape)

    def error(matrix: np.ndarray) -> float:
        return float(((transform(source, matrix) - target) ** 2).sum())

    best = baselines.affinity(source, target)
    assert all(error(best) <= error(best + rng.normal(0, 1e-3, (2, 3))) for _ in range(50))


def test_bending_is_scikit_images_piecewise_affine_warp(faces: Faces) -> None:
    from skimage.transform import PiecewiseAffineTransform, warp

    picture, source = faces.crops[7], faces.landmarks[7].astype(np.float64)
    target = source + np.random.default_rng(0).normal(0, 1.5, source.shape)
    side = np.linspace(0, SIDE - 1, 5)
    edge = np.array([(x, y) for x in side for y in side if {x, y} & {0.0, SIDE - 1.0}])
    inverse = PiecewiseAffineTransform.from_estimate(np.vstack([target, edge]), np.vstack([source, edge]))
    want = warp(picture, inverse, order=3, mode="symmetric", preserve_range=True)
    got = baselines.bent(picture, source, target).astype(float)
    assert np.abs(got - want)[2:-2, 2:-2].mean() < 1 and np.abs(got - picture).mean() > 2
    assert np.abs(baselines.bent(picture, source, source).astype(int) - picture).max() <= 1


# --- paste --------------------------------------------------------------------------------------------------------------


def test_a_paste_shows_the_identitys_face_where_the_scenes_was(faces: Faces) -> None:
    """Against scikit-image's warp of the identity image, deep inside both faces; outside the mask not a byte is another."""
    from skimage.transform import SimilarityTransform, warp

    item = Item(0, 6, 2)
    (got,) = made(AlphaPaste(faces), item)
    source, target = faces.landmarks[item.identity], faces.landmarks[item.scene]
    want = warp(faces.crops[item.identity], SimilarityTransform.from_estimate(source, target).inverse, order=3, preserve_range=True)
    x, y = target[27:48].mean(axis=0).round().astype(int)  # between the eyes and the nose
    inner = (slice(y - 8, y + 9), slice(x - 8, x + 9))
    assert np.abs(got[inner] - want[inner]).mean() < 1 and np.abs(got[inner].astype(float) - faces.crops[0][inner]).mean() > 8
    outside = hull_mask(target, SIDE) == 0
    assert np.array_equal(got[outside], faces.crops[0][outside]) and outside.mean() > 0.4


def test_who_is_pasted_over_themselves_stays(faces: Faces) -> None:
    for i, got in enumerate(made(AlphaPaste(faces), *(Item(i, i, i) for i in range(4)))):
        assert np.abs(got.astype(int) - faces.crops[i]).max() <= 2


def test_the_mask_is_the_parsers_that_is_named(faces: Faces) -> None:
    with pytest.raises(InputError, match="parser"):
        AlphaPaste(faces, mask="hall")
    assert len({AlphaPaste(faces).version, LandmarkWarp(faces).version}) == 2


# --- warp ---------------------------------------------------------------------------------------------------------------


def test_a_warp_brings_brows_and_mouth_to_where_the_expression_has_them(faces: Faces) -> None:
    """Found again in what was made of every pair of people: nearer the expression image's places than the scene's own were."""
    moves, steady = [*range(17, 27), *range(48, 68)], baselines.STEADY
    before, after = [], []
    for scene, other in [(i, j) for i in range(0, 8, 2) for j in range(8) if i != j]:
        (got,) = made(LandmarkWarp(faces), Item(scene, scene, other))
        own, found = faces.landmarks[scene], found_again(got, faces.landmarks[scene])
        assert found is not None
        outside = hull_mask(own, SIDE) == 0
        assert np.array_equal(got[outside], faces.crops[scene][outside])
        wanted = transform(faces.landmarks[other], baselines.affinity(faces.landmarks[other][steady], own[steady]))[moves]
        before.append(np.linalg.norm(own[moves] - wanted, axis=1).mean())
        after.append(np.linalg.norm(found[moves] - wanted, axis=1).mean())
    assert np.mean(after) < 0.6 * np.mean(before), (np.mean(before), np.mean(after))


def test_a_warp_to_ones_own_expression_is_none(faces: Faces) -> None:
    for i, got in enumerate(made(LandmarkWarp(faces), *(Item(i, i, i) for i in range(8)))):
        assert np.abs(got.astype(int) - faces.crops[i]).max() <= 2


# --- insightface's swapper ----------------------------------------------------------------------------------------------


def small_inswapper(path: Path, emap: np.ndarray) -> Path:
    """A network of inswapper's form: half the target, half one colour that the latent names; the matrix is its last initialiser."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    g = np.random.default_rng(1)
    tensors = {"head": g.normal(0, 3, (512, 3)), "half": np.array(0.5), "emap": emap}
    nodes = [
        helper.make_node("MatMul", ["source", "head"], ["c"]),
        helper.make_node("Sigmoid", ["c"], ["s"]),
        helper.make_node("Reshape", ["s", "shape"], ["r"]),
        helper.make_node("Add", ["target", "r"], ["sum"]),
        helper.make_node("Mul", ["sum", "half"], ["output"]),
    ]
    shapes = {"target": [1, 3, 128, 128], "source": [1, 512], "output": [1, 3, 128, 128]}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    stored = [numpy_helper.from_array(np.array([1, 3, 1, 1]), "shape")]
    stored += [numpy_helper.from_array(value.astype(np.float32), name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "s", ends[:2], ends[2:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8), path)
    return path


def small_recogniser(path: Path) -> Path:
    """A network of w600k_r50's form: 7 x 7 mean colours, mixed to 512 numbers."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    head = np.random.default_rng(2).normal(0, 1, (147, 512)).astype(np.float32)
    nodes = [
        helper.make_node("AveragePool", ["input.1"], ["p"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "head"], ["683"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, *s]) for n, s in (("input.1", [3, 112, 112]), ("683", [512]))]
    graph = helper.make_graph(nodes, "r", ends[:1], ends[1:], [numpy_helper.from_array(head, "head")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8), path)
    return path


def test_inswapper_is_given_what_its_package_gives_it(faces: Faces, tmp_path: Path) -> None:
    """The colour at the heart of a swap, worked out by hand from the identity image: five points, chip, embedding, matrix, latent."""
    import cv2
    from skimage.transform import SimilarityTransform

    emap = np.random.default_rng(3).normal(0, 1, (512, 512))
    swapper = InSwapper(faces, small_inswapper(tmp_path / "swap.onnx", emap), small_recogniser(tmp_path / "arc.onnx"))
    item = Item(0, 6, 0)
    (got,) = made(swapper, item)

    points = faces.landmarks[item.identity]
    five = np.stack([points[36:42].mean(axis=0), points[42:48].mean(axis=0), points[30], points[48], points[54]])
    template = np.array([(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)])
    chip = cv2.warpAffine(faces.crops[item.identity], SimilarityTransform.from_estimate(five, template).params[:2], (112, 112))
    means = ((chip.astype(np.float32) - 127.5) / 127.5).reshape(7, 16, 7, 16, 3).mean(axis=(1, 3)).transpose(2, 0, 1).ravel()
    embedding = means @ np.random.default_rng(2).normal(0, 1, (147, 512)).astype(np.float32)
    latent = embedding / np.linalg.norm(embedding) @ emap.astype(np.float32)
    colour = 255 / (1 + np.exp(-(latent / np.linalg.norm(latent)) @ np.random.default_rng(1).normal(0, 3, (512, 3))))
    assert np.ptp(colour) > 40  # so that an order of colours that is turned would show

    x, y = faces.landmarks[0][30].round().astype(int)  # the tip of the nose
    inner = (slice(y - 4, y + 5), slice(x - 4, x + 5))
    want = faces.crops[0][inner].astype(float) / 2 + colour / 2
    assert np.abs(got[inner] - want).mean() < 4 and np.abs(got[inner] - want[..., ::-1]).mean() > 10
    assert np.array_equal(got[:4, :4], faces.crops[0][:4, :4])  # a corner is no face


def test_inswapper_says_which_file_lacks_and_knows_files_apart(faces: Faces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFSFSR_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(NotReady, match="inswapper_128.onnx.*weights pull inswapper"):
        InSwapper(faces)
    arc = small_recogniser(tmp_path / "arc.onnx")
    one, other = (small_inswapper(tmp_path / f"{k}.onnx", k * np.eye(512)) for k in (1, 2))
    assert InSwapper(faces, one, arc).version == InSwapper(faces, one, arc).version != InSwapper(faces, other, arc).version
    assert not weights.ZOO["inswapper"].commercial


# --- by name ------------------------------------------------------------------------------------------------------------


def test_methods_are_made_by_name(faces: Faces) -> None:
    assert {name: baselines.maker(name)(faces).name for name in ("untouched", "real-photo", "alpha-paste", "landmark-warp")} == {
        name: name for name in ("untouched", "real-photo", "alpha-paste", "landmark-warp")
    }
    hybrid = baselines.maker("alpha-paste+landmark-warp")(faces)
    assert hybrid.name == "alpha-paste+landmark-warp"
    (got,) = made(hybrid, Item(0, 6, 1))
    (swapped,) = made(AlphaPaste(faces), Item(0, 6, 0))
    points = found_again(swapped, faces.landmarks[0])
    assert points is not None
    between = Faces(["a", "b"], ["a", "b"], [swapped, faces.crops[1]], np.stack([points, faces.landmarks[1]]))
    assert np.array_equal(got, made(LandmarkWarp(between), Item(0, 0, 1))[0])
    with pytest.raises(InputError, match=r"'alpha-past' \(did you mean alpha-paste\?\)|did you mean alpha-paste"):
        baselines.maker("alpha-past")
    with pytest.raises(InputError, match="--outputs"):
        baselines.maker("untouched+simswap")
