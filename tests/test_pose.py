"""Head pose: signs and degrees of known turns, and the estimators against each other and their originals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffsfsr.encoders import warp as W
from diffsfsr.encoders.face_box import landmark_box, yunet_box
from diffsfsr.errors import InputError, NotReady
from diffsfsr.face import alignment, images
from diffsfsr.face import pose as pose_room
from diffsfsr.face.pose import Pose, pose_estimator
from diffsfsr.face.pose_networks import Bottleneck, FsaNet, Hopenet, HopenetResNet, expected_degrees

SIZE = 256
# The landmark on the other side of the face, by number.
MIRROR = [
    *[*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1), 45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40],
    *[*range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), *range(67, 64, -1)],
]
Faces = tuple[Tensor, Tensor]


def tensors(found: list[alignment.AlignedFace]) -> Faces:
    return images.to_tensor(np.stack([f.crop for f in found])), torch.from_numpy(np.stack([f.crop_landmarks for f in found])).float()


@pytest.fixture(scope="module")
def people(astronaut: Path, six_people: Path) -> Faces:
    """Crops (7, 3, S, S) in [-1, 1] and landmarks (7, 68, 2)."""
    return tensors([face for path in (astronaut, six_people) for face in alignment.align_all(images.read(path), SIZE)])


@pytest.fixture(scope="module")
def fsanet(weights_dir: Path) -> FsaNet:
    return FsaNet()


def mirrored(faces: Faces) -> Faces:
    crops, landmarks = faces
    return crops.flip(-1), torch.stack([crops.shape[-1] - 1 - landmarks[:, MIRROR, 0], landmarks[:, MIRROR, 1]], -1)


def turned(faces: Faces, degrees: float, scale: float = 1.0) -> Faces:
    """The same pictures turned clockwise about their centre, and made smaller."""
    crops, landmarks = faces
    angle, middle = np.radians(degrees), (crops.shape[-1] - 1) / 2
    linear = scale * torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], dtype=torch.float32)
    matrix = torch.cat([linear, (middle - linear.sum(1) * middle)[:, None]], 1)
    return W.warp(crops, matrix.expand(len(crops), 2, 3), crops.shape[-2:], outside=-1.0), landmarks @ linear.T + matrix[:, 2]


def degrees_apart(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b + 180) % 360 - 180).abs()


# --- boxes ----------------------------------------------------------------------------------------------------------


def test_a_box_fills_its_chip(people: Faces) -> None:
    """Brute force on the corners: the box's own corners go to the chip's outer edges."""
    for box in (landmark_box(people[1]), yunet_box(turned(people, 40)[1]).grow(0.4, 0.1, 0.3)):
        right = torch.stack([box.angle.cos(), box.angle.sin()], -1) * box.width[:, None] / 2
        down = torch.stack([-box.angle.sin(), box.angle.cos()], -1) * box.height[:, None] / 2
        corners = torch.stack([box.centre - right - down, box.centre + right + down, box.centre + right - down], 1)
        matrix = box.matrix(64)
        found = corners @ matrix[:, :, :2].mT + matrix[:, None, :, 2]
        wanted = torch.tensor([[-0.5, -0.5], [63.5, 63.5], [63.5, -0.5]]).expand_as(found)
        torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0)


def test_margins_are_shares_of_the_box(people: Faces) -> None:
    box = landmark_box(people[1])
    grown = box.grow(sides=0.5, top=1.0, bottom=0.25)
    torch.testing.assert_close(grown.width, 2 * box.width)
    torch.testing.assert_close(grown.height, 2.25 * box.height)
    moved = grown.centre - box.centre
    torch.testing.assert_close(moved.norm(dim=1), 0.375 * box.height)
    assert (moved[:, 1] < 0).all()  # up


@pytest.mark.weights
def test_yunets_box_is_told_from_the_landmarks(six_people: Path, astronaut: Path, weights_dir: Path) -> None:
    import cv2

    detector = cv2.FaceDetectorYN.create(str(weights_dir / "face_detection_yunet_2026may.onnx"), "", (0, 0), 0.6)
    for path in (six_people, astronaut):
        picture = images.read(path)
        detector.setInputSize((picture.shape[1], picture.shape[0]))
        found = np.array(sorted(detector.detect(np.ascontiguousarray(picture[:, :, ::-1]))[1], key=lambda row: row[0]))
        ours = yunet_box(torch.from_numpy(np.stack([face.landmarks for face in alignment.align_all(picture, 64)])))
        assert len(found) == len(ours.width)
        np.testing.assert_allclose(ours.height, found[:, 3], rtol=0.2)
        np.testing.assert_allclose(ours.width, found[:, 2], rtol=0.2)
        assert abs(np.mean(ours.height.numpy() / found[:, 3]) - 1) < 0.05 and abs(np.mean(ours.width.numpy() / found[:, 2]) - 1) < 0.05
        assert (np.abs(ours.centre.numpy() - (found[:, :2] + found[:, 2:4] / 2)) < 0.09 * found[:, 3:4]).all()


# --- from landmarks -------------------------------------------------------------------------------------------------


def rotation(pose: Pose) -> np.ndarray:
    import cv2

    yaw, pitch, roll = np.radians([pose.yaw, -pose.pitch, pose.roll])
    x, y, z = (cv2.Rodrigues(np.eye(3)[i] * angle)[0] for i, angle in enumerate((pitch, yaw, roll)))
    return z @ y @ x


@pytest.mark.parametrize("metres", [0.27, 0.3, 0.36])
def test_pnp_tells_the_turn_of_a_head(metres: float) -> None:
    """Other heads than its own (each point 2 mm off), nearer and farther than it takes them to be."""
    rng, errors = np.random.default_rng(0), []
    for yaw in (-45, -20, 0, 20, 45):
        for pitch in (-25, 0, 25):
            head = np.zeros((68, 3))
            head[pose_room._POSE_LANDMARKS] = pose_room._HEAD + rng.normal(0, 0.2, pose_room._HEAD.shape)
            head[37:39], head[40:42] = head[36], head[39]  # so that the middle of an eye is that of its corners
            head[43:45], head[46:48] = head[42], head[45]
            pose = Pose(yaw, pitch, rng.uniform(-170, 170))
            seen = (head - (0, -4.7, -4)) @ rotation(pose).T + (0, 0, 100 * metres)
            found = pose_room.head_pose(seen[:, :2] / seen[:, 2:] * 900 + (320, 240))
            errors.append([(a - b + 180) % 360 - 180 for a, b in zip(vars(found).values(), vars(pose).values(), strict=True)])
    assert np.abs(errors).mean(0).max() < 2.5 and np.abs(errors).max() < 6, (np.abs(errors).mean(0), np.abs(errors).max(0))


def test_the_generic_head_is_symmetric() -> None:
    place = {n: point for n, point in zip(pose_room._POSE_LANDMARKS, pose_room._HEAD, strict=True)}
    for n, (x, y, z) in place.items():
        np.testing.assert_array_equal(place[MIRROR[n]], (-x, y, z))


def test_pnp_as_an_estimator(people: Faces) -> None:
    found = pose_estimator("pnp")(*people)
    each = [pose_room.head_pose(points.numpy()) for points in people[1]]
    torch.testing.assert_close(found, torch.tensor([(p.yaw, p.pitch, p.roll) for p in each]))
    assert found.dtype == torch.float32 and pose_estimator("pnp")(people[0][:0], people[1][:0]).shape == (0, 3)
    assert len(pose_estimator("pnp").version) == 64


def test_unknown_names_and_missing_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="did you mean hopenet"):
        pose_estimator("hopnet")
    monkeypatch.delenv("DIFFSFSR_WEIGHTS", raising=False)
    for name in ("fsanet", "hopenet"):
        with pytest.raises(NotReady, match=f"diffsfsr weights pull {name}"):
            pose_estimator(name)


# --- FSA-Net --------------------------------------------------------------------------------------------------------


@pytest.mark.weights
def test_fsanet_is_its_authors_demo(six_people: Path, astronaut: Path, fsanet: FsaNet, weights_dir: Path) -> None:
    """YuNet's box in the whole picture, OpenCV and onnxruntime against landmarks in the canonical crop and torch."""
    import cv2

    sessions, errors = originals(weights_dir), []
    detector = cv2.FaceDetectorYN.create(str(weights_dir / "face_detection_yunet_2026may.onnx"), "", (0, 0), 0.6)
    for path in (six_people, astronaut):
        picture = np.ascontiguousarray(images.read(path)[:, :, ::-1])
        detector.setInputSize((picture.shape[1], picture.shape[0]))
        boxes = sorted(detector.detect(picture)[1].tolist(), key=lambda row: row[0])
        faces = alignment.align_all(images.read(path), SIZE)
        for (x, y, w, h, *_), face, found in zip(boxes, faces, fsanet(*tensors(faces)), strict=True):
            part = picture[max(int(y - 0.4 * h), 0) : int(y + 1.4 * h), max(int(x - 0.4 * w), 0) : int(x + 1.4 * w)]
            chip = ((cv2.resize(part, (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32) - 127.5) / 128).transpose(2, 0, 1)[None]
            wanted = np.mean([session.run(None, {"input": chip})[0][0] for session in sessions], axis=0)
            turn = np.degrees(np.arctan2(face.matrix[1, 0], face.matrix[0, 0]))  # by which the crop was made level
            if abs(turn) < 15:  # a tilted head fits no box along the picture's edges
                errors.append(np.abs(found.numpy() - wanted - (0, 0, turn)))
    assert len(errors) == 5 and (np.mean(errors, 0) < 7).all() and (np.median(errors, 0) < 5).all(), errors


def originals(weights_dir: Path) -> list[Any]:
    import onnxruntime

    return [onnxruntime.InferenceSession(weights_dir / f"fsanet-{kind}-iter-688590.onnx") for kind in ("1x1", "var")]


@pytest.mark.weights
def test_fsanet_is_onnxruntimes_on_the_same_chips(people: Faces, fsanet: FsaNet, weights_dir: Path) -> None:
    seen: list[Tensor] = []
    hook = fsanet.nets[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    found = fsanet(*people)
    hook.remove()
    sessions = originals(weights_dir)
    wanted = np.stack([np.mean([s.run(None, {"input": chip.numpy()})[0][0] for s in sessions], axis=0) for chip in seen])
    wanted[:, 2] += yunet_box(people[1]).angle.rad2deg().numpy()
    np.testing.assert_allclose(found.numpy(), wanted, atol=2e-3)


@pytest.mark.weights
def test_fsanet_mirror(people: Faces, fsanet: FsaNet) -> None:
    here, there = fsanet(*people), fsanet(*mirrored(people))
    difference = (here * torch.tensor([-1.0, 1.0, -1.0]) - there).abs()
    assert difference.max() < 7 and difference.mean(0).max() < 3
    assert here[:, 0].abs().max() > 15  # some of them do look aside


@pytest.mark.weights
@pytest.mark.parametrize("degrees", [-60.0, 20.0, 150.0])
def test_turning_the_picture_adds_to_the_roll_alone(people: Faces, fsanet: FsaNet, degrees: float) -> None:
    few = (people[0][:4], people[1][:4])
    moved = turned(few, degrees, scale=0.9)
    for estimate, allowed in ((fsanet, 2.5), (pose_estimator("pnp"), 0.1)):
        here, there = estimate(*few), estimate(*moved)
        assert degrees_apart(here + torch.tensor([0.0, 0.0, degrees]), there).max() < allowed


@pytest.mark.weights
def test_fsanet_and_pnp_see_the_same_heads(faces_dir: Path, fsanet: FsaNet) -> None:
    """On photographs that the generic head was not fitted on."""
    paths = sorted((faces_dir / "congress").glob("*.jpg"))[::12]
    faces = tensors([face for path in paths for face in alignment.align_all(images.read(path), 128)[:1]])
    difference = pose_estimator("pnp")(*faces) - fsanet(*faces)
    assert len(difference) >= 12
    assert (difference.abs().mean(0) < torch.tensor([3.5, 5.0, 3.0])).all(), difference.abs().mean(0)
    assert (difference.mean(0).abs() < torch.tensor([2.0, 3.0, 2.0])).all(), difference.mean(0)


@pytest.mark.weights
def test_fsanet_has_gradients_in_the_picture(people: Faces, fsanet: FsaNet) -> None:
    crops = people[0][:1].clone().requires_grad_()
    fsanet(crops, people[1][:1])[0, 0].backward()
    assert crops.grad is not None and crops.grad.abs().sum() > 0
    step = 3e-3 * crops.grad / crops.grad.abs().max()
    with torch.no_grad():
        ahead, behind = (fsanet(crops + sign * step, people[1][:1])[0, 0] for sign in (1, -1))
    assert ((ahead - behind) / 2).item() == pytest.approx((crops.grad * step).sum().item(), rel=0.05)


# --- Hopenet --------------------------------------------------------------------------------------------------------


def published_state() -> dict[str, tuple[int, ...]]:
    """Names and shapes of hopenet_alpha1.pkl: torchvision's ResNet-50 as of 2017 (no num_batches_tracked), fc replaced by four."""
    found: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7)}

    def norm(name: str, width: int) -> None:
        found.update({f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")})

    norm("bn1", 64)
    inputs = 64
    for layer, (width, blocks) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True), 1):
        for block in range(blocks):
            prefix = f"layer{layer}.{block}"
            sizes = [(width, inputs, 1), (width, width, 3), (4 * width, width, 1)]
            for n, (rows, columns, kernel) in enumerate(sizes, 1):
                found[f"{prefix}.conv{n}.weight"] = (rows, columns, kernel, kernel)
                norm(f"{prefix}.bn{n}", rows)
            if block == 0:
                found[f"{prefix}.downsample.0.weight"] = (4 * width, inputs, 1, 1)
                norm(f"{prefix}.downsample.1", 4 * width)
            inputs = 4 * width
    for head in ("yaw", "pitch", "roll"):
        found |= {f"fc_{head}.weight": (66, 2048), f"fc_{head}.bias": (66,)}
    return found | {"fc_finetune.weight": (3, 2051), "fc_finetune.bias": (3,)}


@pytest.fixture(scope="module")
def hopenet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the published form, in the file format of its time."""
    generator = torch.Generator().manual_seed(0)
    scale = {name: (2 / np.prod(shape[1:])) ** 0.5 for name, shape in published_state().items()}  # as He: the signal keeps its size
    state = {name: torch.randn(shape, generator=generator) * scale[name] for name, shape in published_state().items()}
    for name, (size, *rest) in published_state().items():
        if not rest:  # of a normalisation, or a bias
            near = 1.0 if name.endswith(("running_var", "weight")) else 0.0
            state[name] = near + 0.1 * torch.rand(size, generator=generator)
    path = tmp_path_factory.mktemp("hopenet") / "hopenet_robust_alpha1.pkl"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


def test_hopenet_has_the_published_form(hopenet_file: Path) -> None:
    net = HopenetResNet()
    ours = {name: tuple(value.shape) for name, value in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert ours == published_state()
    # torchvision's ResNet-50 has 25,557,032 parameters, 2,049,000 of them in its fc.
    assert sum(p.numel() for p in net.parameters()) == 25_557_032 - 2_049_000 + 3 * 66 * 2049 + 3 * 2052
    loaded = HopenetResNet.from_file(hopenet_file)
    saved = torch.load(hopenet_file, weights_only=True)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in saved.items())


def test_hopenets_trunk_is_resnet_50(hopenet_file: Path) -> None:
    """Against transformers' ResNet with the same weights."""
    from transformers import ResNetConfig, ResNetModel

    ours = Hopenet(HopenetResNet.from_file(hopenet_file)).net
    theirs = ResNetModel(ResNetConfig()).eval()
    state = ours.state_dict()
    renamed = {}
    for name in theirs.state_dict():
        parts = name.removeprefix("embedder.embedder.").removeprefix("encoder.stages.").split(".")
        if name.startswith("embedder"):
            source = {"convolution": "conv1", "normalization": "bn1"}[parts[0]] + "." + parts[-1]
        else:
            block = f"layer{int(parts[0]) + 1}.{parts[2]}"
            kind = 0 if "convolution" in parts else 1
            where = f"downsample.{kind}" if parts[3] == "shortcut" else f"{('conv', 'bn')[kind]}{int(parts[4]) + 1}"
            source = f"{block}.{where}.{parts[-1]}"
        renamed[name] = state[source]
    theirs.load_state_dict(renamed)
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = theirs(x).pooler_output.flatten(1)
        wanted = torch.stack([features @ state[f"fc_{n}.weight"].T + state[f"fc_{n}.bias"] for n in ("yaw", "pitch", "roll")], 1)
        torch.testing.assert_close(ours(x), wanted, atol=1e-3 * wanted.std().item(), rtol=1e-3)
    assert 1 < wanted.std() < 1e4
    assert isinstance(ours.get_submodule("layer2.0"), Bottleneck) and not any(p.requires_grad for p in ours.parameters())


def test_degrees_are_the_expectation_of_the_bins() -> None:
    sure = torch.full((66, 66), -100.0)
    sure.fill_diagonal_(100.0)
    torch.testing.assert_close(expected_degrees(sure), torch.arange(-99.0, 98.0, 3.0))
    torch.testing.assert_close(expected_degrees(torch.zeros(2, 3, 66)), torch.full((2, 3), -1.5))  # the mean of -99 and 96
    split = torch.full((66,), -100.0)
    split[[33, 37]] = torch.tensor([0.75, 0.25]).log()
    assert expected_degrees(split).item() == pytest.approx(3.0, abs=1e-4)


def test_hopenet_sees_the_loose_square_of_its_training(people: Faces, hopenet_file: Path) -> None:
    """Its chip against OpenCV's crop by the training code's rule, on an upright face; and the roll of a turned picture."""
    import cv2

    hopenet = Hopenet(HopenetResNet.from_file(hopenet_file))
    seen: list[Tensor] = []
    hopenet.net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    level = turned((people[0][:1], people[1][:1]), -float(landmark_box(people[1][:1]).angle.rad2deg()))
    before = hopenet(*level)
    (x0, y0), (x1, y1) = level[1][0].min(0).values.tolist(), level[1][0].max(0).values.tolist()
    w, h = x1 - x0, y1 - y0
    x0, x1, y0, y1 = x0 - 0.18 * w, x1 + 0.18 * w, y0 - 0.6 * h, y1 + 0.18 * h
    side, x, y = min(x1 - x0, y1 - y0), (x0 + x1) / 2, (y0 + y1) / 2  # Scale(224), CenterCrop(224)
    scale = 224 / side
    matrix = np.array([[scale, 0, 111.5 - scale * x], [0, scale, 111.5 - scale * y]])
    chip = cv2.warpAffine(images.to_uint8(level[0])[0], matrix, (224, 224), flags=cv2.INTER_LINEAR).astype(np.float32) / 255
    wanted = ((chip - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).transpose(2, 0, 1)
    assert np.abs(seen[0][0].numpy() - wanted).mean() < 0.03
    after = hopenet(*turned(level, 30))
    assert degrees_apart(before + torch.tensor([0.0, 0.0, 30.0]), after).max() < 1.0


class Hostile:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_hopenet_refuses_other_files(hopenet_file: Path, tmp_path: Path) -> None:
    torch.save(Hostile(tmp_path / "executed"), tmp_path / "hostile.pkl")
    state = torch.load(hopenet_file, weights_only=True)
    torch.save({k: v for k, v in state.items() if k != "fc_roll.bias"}, tmp_path / "part.pkl")
    torch.save(Bottleneck(64, 64, 1), tmp_path / "module.pkl")  # a whole module: loading it would run code
    torch.save(state | {"fc_yaw.bias": state["fc_yaw.bias"].to(torch.complex64)}, tmp_path / "complex.pkl")
    torch.save(state | {"fc_yaw.bias": state["fc_yaw.bias"] * torch.nan}, tmp_path / "nan.pkl")
    (tmp_path / "text.pkl").write_text("no weights")
    (tmp_path / "cut.pkl").write_bytes(hopenet_file.read_bytes()[:5000])
    (tmp_path / "empty.pkl").write_bytes(b"")
    for name in ("part", "module", "complex", "nan", "text", "cut", "empty", "hostile"):
        with pytest.raises(InputError, match=f"{name}.pkl") as caught:
            HopenetResNet.from_file(tmp_path / f"{name}.pkl")
        assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()
