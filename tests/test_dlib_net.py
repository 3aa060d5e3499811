"""dlib's network in torch, against dlib's own Python API."""

from __future__ import annotations

import copy
import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffsfsr import weights
from diffsfsr.encoders import Encoder, load_encoder
from diffsfsr.encoders.dlib_net import DlibEncoder, DlibResNet, read_dat
from diffsfsr.encoders.warp import DLIB_POINTS, dlib_template
from diffsfsr.errors import InputError


@pytest.fixture(scope="module")
def encoder() -> DlibEncoder:
    found = load_encoder("dlib")
    assert isinstance(found, DlibEncoder)
    return found


@pytest.fixture(scope="module")
def oracle() -> Any:
    import dlib

    return dlib.face_recognition_model_v1(str(weights.resolve("dlib-face")))


@pytest.fixture(scope="module")
def predictor() -> Any:
    import dlib

    return dlib.shape_predictor(str(weights.resolve("dlib-landmarks-68")))


def read(path: Path) -> np.ndarray:
    return np.array(Image.open(path).convert("RGB"))


def faces(image: np.ndarray, predictor: Any) -> list[Any]:
    import dlib

    return [predictor(image, box) for box in dlib.get_frontal_face_detector()(image, 0)]


def compare(image: np.ndarray, shapes: list[Any], encoder: DlibEncoder, oracle: Any) -> tuple[float, float]:
    """Largest difference of the raw networks on dlib's chips, and least cosine from the picture itself."""
    import dlib

    chips = np.stack([dlib.get_face_chip(image, shape, 150, 0.25) for shape in shapes])
    want = np.array([oracle.compute_face_descriptor(chip) for chip in chips])
    landmarks = torch.tensor([[[p.x, p.y] for p in shape.parts()] for shape in shapes], dtype=torch.float32)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        raw = encoder.net(torch.from_numpy(chips).permute(0, 3, 1, 2).float()).numpy()
        whole = torch.cat([encoder(pixels, item[None]) for item in landmarks]).numpy()
    cosine = (whole * want).sum(1) / np.linalg.norm(whole, axis=1) / np.linalg.norm(want, axis=1)
    return float(np.abs(raw - want).max()), float(cosine.min())


def test_parity_with_dlib(six_people: Path, tom_hanks: Path, astronaut: Path, encoder: DlibEncoder, oracle: Any, predictor: Any) -> None:
    import dlib

    for path, count in ((six_people, 6), (astronaut, 1)):
        image = read(path)
        shapes = faces(image, predictor)
        assert len(shapes) >= count
        difference, cosine = compare(image, shapes[:count], encoder, oracle)
        assert difference < 1e-5 and cosine > 0.9995
    image = read(tom_hanks)  # already a tight crop: the chip reaches outside it
    height, width = image.shape[:2]
    difference, cosine = compare(image, [predictor(image, dlib.rectangle(0, 0, width - 1, height - 1))], encoder, oracle)
    assert difference < 1e-5 and cosine > 0.999


def test_parity_on_lfw_and_on_large_portraits(faces_dir: Path, encoder: DlibEncoder, oracle: Any, predictor: Any) -> None:
    import dlib

    with open(faces_dir / "lfw/labels.csv") as f:
        some = [row["file"] for row in csv.DictReader(f)][::2000]
    for name in some:
        difference, cosine = compare(
            image := read(faces_dir / "lfw" / name), [predictor(image, dlib.rectangle(68, 68, 182, 182))], encoder, oracle
        )
        assert difference < 1e-5 and cosine > 0.999, name
    large = read(sorted((faces_dir / "portraits").glob("*.jpg"))[0])  # its face shrinks more than twofold
    difference, cosine = compare(large, faces(large, predictor)[:1], encoder, oracle)
    assert difference < 1e-5 and cosine > 0.999


def test_a_batch_equals_its_items_and_people_are_told_apart(six_people: Path, encoder: DlibEncoder, predictor: Any) -> None:
    image = read(six_people)
    shapes = faces(image, predictor)
    landmarks = torch.tensor([[[p.x, p.y] for p in shape.parts()] for shape in shapes], dtype=torch.float32)
    pixels = (torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1).expand(6, -1, -1, -1)
    with torch.inference_mode():
        batch = encoder(pixels, landmarks)
        single = torch.cat([encoder(pixels[:1], item[None]) for item in landmarks])
        mirrored = encoder(pixels.flip(-1), torch.cat([image.shape[1] - 1 - landmarks[..., :1], landmarks[..., 1:]], -1)[:, MIRROR])
    torch.testing.assert_close(batch, single, atol=2e-6, rtol=0)
    assert torch.cdist(mirrored, batch).argmin(1).tolist() == list(range(6))
    assert (torch.cdist(batch, batch) + torch.eye(6)).min() > 0.6 > torch.cdist(mirrored, batch).diagonal().max()  # dlib's own threshold


# The landmark that each becomes in a mirror.
MIRROR = [
    *range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1), 45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
    *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), *range(67, 64, -1),
]  # fmt: skip


def test_it_is_frozen_and_differentiable_in_the_images(encoder: DlibEncoder) -> None:
    assert isinstance(encoder, Encoder) and encoder.dim == 128 and not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    landmarks = torch.zeros(1, 68, 2)
    landmarks[0, list(DLIB_POINTS)] = dlib_template(100) + 14  # a chip that spans pixels 14 to 114
    images = (torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1).requires_grad_(True)
    out = encoder(images, landmarks)
    assert out.shape == (1, 128) and out.dtype == torch.float32
    out.square().sum().backward()
    gradient = images.grad
    assert gradient is not None and gradient.isfinite().all()
    assert (gradient[:, :, 20:108, 20:108] != 0).float().mean() > 0.99 and (gradient[:, :, :12] == 0).all()


def test_it_tells_what_its_layers_saw(encoder: DlibEncoder) -> None:
    chips = 255 * torch.rand(2, 3, 150, 150, generator=torch.Generator().manual_seed(0))
    out, *seen = encoder.net.look(chips)
    assert torch.equal(out, encoder.net(chips))
    assert [tuple(x.shape[1:]) for x in seen] == [(32, 35, 35), (32, 35, 35), (64, 17, 17), (128, 8, 8), (256, 4, 4)]
    assert all(float(x.min()) >= 0 and float(x.std()) > 0 for x in seen)


def test_the_gradient_is_the_slope(encoder: DlibEncoder) -> None:
    """Along one direction, in float64, against a central difference."""
    net = DlibResNet().double()
    net.load_state_dict(encoder.net.state_dict())
    g = torch.Generator().manual_seed(0)
    chip = (torch.rand(1, 3, 103, 103, generator=g).double() * 255).requires_grad_(True)  # less work
    way, weight = torch.randn(1, 3, 103, 103, generator=g).double(), torch.randn(128, generator=g).double()
    (gradient,) = torch.autograd.grad((net(chip) @ weight).sum(), chip)
    with torch.no_grad():
        numeric = ((net(chip + 1e-6 * way) - net(chip - 1e-6 * way)) @ weight).sum() / 2e-6
        assert (gradient * way).sum().item() == pytest.approx(numeric.item(), rel=1e-5)


def test_the_version_is_that_of_the_weights(encoder: DlibEncoder) -> None:
    assert len(encoder.version) == 64 and DlibEncoder().version == encoder.version
    other = DlibResNet.from_dat(weights.resolve("dlib-face"))
    with torch.no_grad():
        other.head.weight[0, 0] += 1e-6
    changed = DlibEncoder(other)
    assert changed.version != encoder.version and not changed.training and not any(p.requires_grad for p in changed.parameters())


def test_bfloat16_is_close(encoder: DlibEncoder, astronaut: Path, predictor: Any) -> None:
    image = read(astronaut)
    shape = faces(image, predictor)[0]
    landmarks = torch.tensor([[[p.x, p.y] for p in shape.parts()]], dtype=torch.float32)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        want = encoder(pixels, landmarks)
        got = copy.deepcopy(encoder).to(torch.bfloat16)(pixels, landmarks)
    assert got.dtype == torch.float32 and torch.cosine_similarity(got, want).item() > 0.999


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d[:1_000_000], "claims 73856 values|end of the file found where|cut off"),
        (lambda d: d[: d.index(b"\x01\x05con_4") + 8], "ends at byte|cut off"),
        (lambda d: b"", "end of the file found where con_4"),
        (lambda d: b"not a network" * 1000, "end of the file found where con_4"),
        (lambda d: d + d[d.index(b"\x01\x05con_4") :], "another con_4 block follows"),
        (
            lambda d: d.replace(b"\x01\x05con_4\x01\x02\x02\x80\x12", b"\x01\x05con_4\x01\x02\x04\xff\xff\xff\x7f", 1),
            "claims 2147483647 values",
        ),
        (lambda d: d.replace(b"\x01\x05con_4\x01\x02\x02\x80\x12", b"\x01\x05con_4\x01\x02\x82\x80\x12", 1), "claims -4736 values"),
        (lambda d: d[:400] + b"\x00\x00\xc0\x7f" * 4 + d[416:], "not finite"),
    ],
)
def test_a_damaged_or_foreign_file_is_named(change: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "net.dat"
    path.write_bytes(change(weights.resolve("dlib-face").read_bytes()))
    with pytest.raises(InputError, match=said) as caught:
        read_dat(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_other_things_are_not_networks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a file"):
        read_dat(tmp_path)
    with pytest.raises(InputError, match="found where con_4"):
        read_dat(weights.resolve("dlib-landmarks-68"))
    with pytest.raises(InputError, match="unknown encoder 'dlip' .did you mean dlib"):
        load_encoder("dlip")
