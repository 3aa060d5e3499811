"""FaceNet: the published state dict's keys and shapes, its sizes, its chips, and what it refuses to load.

`facenet_keys.txt` lists every key and shape of facenet-pytorch's InceptionResnetV1 as published for VGGFace2, taken from that
class itself (timesler/facenet-pytorch, models/inception_resnet_v1.py); "-" is a scalar.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from diffsfsr.encoders import Encoder, load_encoder
from diffsfsr.encoders.facenet import FaceNetEncoder, InceptionResnetV1, facenet_chips
from diffsfsr.encoders.state_file import read_state
from diffsfsr.encoders.warp import TEMPLATES
from diffsfsr.errors import InputError, NotReady

PUBLISHED = {
    key: () if shape == "-" else tuple(map(int, shape.split("x")))
    for key, shape in (line.split() for line in (Path(__file__).parent / "facenet_keys.txt").read_text().splitlines())
}


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Random weights under the published names, with statistics that keep activations in range."""
    g = torch.Generator().manual_seed(0)

    def value(key: str, shape: tuple[int, ...]) -> torch.Tensor:
        if key.endswith("num_batches_tracked"):
            return torch.tensor(7)
        if key.endswith("running_var") or (key.endswith("weight") and len(shape) == 1):
            return 0.5 + torch.rand(shape, generator=g)
        spread = 0.1 if len(shape) < 2 else (2 / torch.Size(shape[1:]).numel()) ** 0.5
        return spread * torch.randn(shape, generator=g)

    return {key: value(key, shape) for key, shape in PUBLISHED.items()}


@pytest.fixture(scope="module")
def published(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "20180402-114759-vggface2.pt"
    torch.save(state, path, _use_new_zipfile_serialization=False)  # the published file is of the old form
    return path


@pytest.fixture(scope="module")
def net(published: Path) -> InceptionResnetV1:
    return InceptionResnetV1.from_file(published).eval()


def test_the_published_keys_and_shapes_are_ours_and_the_classifiers() -> None:
    ours = {key: tuple(value.shape) for key, value in InceptionResnetV1().state_dict().items()}
    classifier = {"logits.weight": (8631, 512), "logits.bias": (8631,)}
    assert ours | classifier == PUBLISHED and not ours.keys() & classifier.keys()
    parameters = {k: torch.Size(s).numel() for k, s in PUBLISHED.items() if not k.endswith(("num_batches_tracked", "mean", "_var"))}
    assert sum(parameters.values()) == 27_910_327
    assert sum(p.numel() for p in InceptionResnetV1().parameters()) == 27_910_327 - 8631 * 513 == 23_482_624


def test_every_tensor_of_the_file_arrives(published: Path, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    want = {k: v for k, v in state.items() if not k.startswith("logits.")}
    loaded = InceptionResnetV1.from_file(published).state_dict()
    assert loaded.keys() == want.keys() and all(torch.equal(loaded[k], want[k]) for k in want)
    older = {k: v for k, v in want.items() if not k.endswith("num_batches_tracked")}  # and without a classifier
    torch.save(older, tmp_path / "older.pt")
    loaded = InceptionResnetV1.from_file(tmp_path / "older.pt").state_dict()
    assert all(torch.equal(loaded[k], older[k]) for k in older)


def test_the_network_is_inception_resnet_v1(net: InceptionResnetV1, state: dict[str, torch.Tensor]) -> None:
    """Written out once more, as functions of the published tensors alone."""
    s = {k: v.double() for k, v in state.items()}

    def unit(x: torch.Tensor, at: str, stride: int = 1, pad: Any = 0) -> torch.Tensor:
        y = F.conv2d(x, s[f"{at}.conv.weight"], None, stride, pad)
        bn = [s[f"{at}.bn.{k}"].view(1, -1, 1, 1) for k in ("running_mean", "running_var", "weight", "bias")]
        return ((y - bn[0]) / (bn[1] + 0.001).sqrt() * bn[2] + bn[3]).clamp_min(0)

    def chain(x: torch.Tensor, at: str, *pads: Any, last: int = 1) -> torch.Tensor:
        for i, pad in enumerate(pads):
            x = unit(x, f"{at}.{i}", last if i == len(pads) - 1 else 1, pad)
        return x

    def residual(x: torch.Tensor, at: str, scale: float, *branches: torch.Tensor) -> torch.Tensor:
        y = torch.cat([unit(x, f"{at}.branch0"), *branches], 1)
        return x + scale * F.conv2d(y, s[f"{at}.conv2d.weight"], s[f"{at}.conv2d.bias"])

    chips = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 255
    x = (chips - 127.5) / 128
    x = F.max_pool2d(unit(unit(unit(x, "conv2d_1a", 2), "conv2d_2a"), "conv2d_2b", 1, 1), 3, 2)
    x = unit(unit(unit(x, "conv2d_3b"), "conv2d_4a"), "conv2d_4b", 2)
    assert x.shape == (2, 256, 17, 17)
    for at in (f"repeat_1.{i}" for i in range(5)):
        x = residual(x, at, 0.17, chain(x, f"{at}.branch1", 0, 1), chain(x, f"{at}.branch2", 0, 1, 1)).relu()
    x = torch.cat([unit(x, "mixed_6a.branch0", 2), chain(x, "mixed_6a.branch1", 0, 1, 0, last=2), F.max_pool2d(x, 3, 2)], 1)
    assert x.shape == (2, 896, 8, 8)
    for at in (f"repeat_2.{i}" for i in range(10)):
        x = residual(x, at, 0.10, chain(x, f"{at}.branch1", 0, (0, 3), (3, 0))).relu()
    reduced = [chain(x, f"mixed_7a.branch{i}", *pads, last=2) for i, pads in enumerate(((0, 0), (0, 0), (0, 1, 0)))]
    x = torch.cat([*reduced, F.max_pool2d(x, 3, 2)], 1)
    assert x.shape == (2, 1792, 3, 3)
    for at in (f"repeat_3.{i}" for i in range(5)):
        x = residual(x, at, 0.20, chain(x, f"{at}.branch1", 0, (0, 1), (1, 0))).relu()
    x = residual(x, "block8", 1.0, chain(x, "block8.branch1", 0, (0, 1), (1, 0)))
    x = x.mean((2, 3)) @ s["last_linear.weight"].T
    bn = [s[f"last_bn.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
    want = F.normalize((x - bn[0]) / (bn[1] + 0.001).sqrt() * bn[2] + bn[3], dim=1)
    with torch.inference_mode():
        found = net(chips.float())
    assert found.shape == (2, 512) and found.dtype == torch.float32 and (want[0] - want[1]).norm() > 0.01
    torch.testing.assert_close(found.double(), want, atol=2e-6, rtol=0)


def test_chips_are_the_boxes_it_was_trained_on() -> None:
    """A face whose unstretched five points stand at the template's: its chip is the picture, widened by the stretch."""
    template = TEMPLATES["facenet"]
    landmarks = torch.zeros(1, 68, 2)
    for places, (x, y) in zip((slice(36, 42), slice(42, 48), 30, 48, 54), template.points, strict=True):
        landmarks[0, places] = torch.tensor([x / template.stretch, y])
    ramp = torch.linspace(-1, 1, 161).expand(1, 3, 180, 161)  # along x
    chips = facenet_chips(ramp, landmarks)
    want = (torch.arange(160) / template.stretch) / 80 - 1
    torch.testing.assert_close(chips[0, 0, 50], (want + 1) * 127.5, atol=0.02, rtol=0)


def test_it_is_an_encoder_frozen_and_differentiable(net: InceptionResnetV1) -> None:
    encoder = FaceNetEncoder(net)
    assert isinstance(encoder, Encoder) and encoder.name == "facenet" and encoder.dim == 512 and encoder.centred
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    landmarks = torch.tensor(TEMPLATES["facenet"].points)
    full = torch.zeros(2, 68, 2)
    full[:, 36:42], full[:, 42:48] = landmarks[0] * 0.8, landmarks[1] * 0.8
    full[:, 30], full[:, 48], full[:, 54] = landmarks[2] * 0.8, landmarks[3] * 0.8, landmarks[4] * 0.8
    images = (torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(2)) * 2 - 1).requires_grad_(True)
    out = encoder(images, full)
    torch.testing.assert_close(out.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(encoder(images[1:], full[1:]), out[1:], atol=1e-5, rtol=0)
    way = torch.randn(512, generator=torch.Generator().manual_seed(3))
    (gradient,) = torch.autograd.grad((out @ way).sum(), images)
    step = 1e-2 * gradient / gradient.norm()
    with torch.no_grad():
        slope = ((encoder(images + step, full) - encoder(images - step, full)) @ way).sum() / 2e-2
    assert slope.item() == pytest.approx(gradient.norm().item(), rel=0.02)


def test_without_its_file_it_says_which_command_brings_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIFFSFSR_WEIGHTS", str(tmp_path))
    with pytest.raises(NotReady, match="diffsfsr weights pull facenet"):
        load_encoder("facenet")


class _Command:
    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def _changed(state: dict[str, torch.Tensor], **new: Any) -> dict[str, Any]:
    found = dict(state)
    for key, value in new.items():
        found.pop(key.replace("__", "."), None) if value is None else found.update({key.replace("__", "."): value})
    return found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"last_linear__weight": None}, r"last_linear.weight is absent where \(512, 1792\) belongs"),
        ({"last_linear__weight": torch.zeros(128, 1792)}, r"last_linear.weight is \(128, 1792\) where \(512, 1792\)"),
        ({"head__weight": torch.zeros(3)}, r"head.weight is \(3,\) where nothing belongs"),
        ({"block8__conv2d__bias": torch.full((1792,), torch.nan)}, "block8.conv2d.bias holds values that are not finite"),
        ({"epoch": 5}, "not a state dict"),
    ],
)
def test_another_state_is_refused_naming_the_key(state: dict[str, torch.Tensor], change: dict, said: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    end = {k: v for k, v in state.items() if k.startswith(("block8", "last_"))}  # enough to see it
    torch.save(_changed(end, **change), path)
    with pytest.raises(InputError, match=said) as caught:
        read_state(path, end, "FaceNet")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_in_a_file_is_executed(published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net.pt"
    hostile = {"zip": lambda: torch.save({"a": _Command()}, path), "pickle": lambda: path.write_bytes(pickle.dumps(_Command(), 2))}
    others = {
        "cut": lambda: path.write_bytes(published.read_bytes()[:50_000]),
        "empty": lambda: path.write_bytes(b""),
        "text": lambda: path.write_bytes(b"<html>404</html>" * 100),
    }
    for name, write in (hostile | others).items():
        write()
        with pytest.raises(InputError) as caught:
            read_state(path, {}, "FaceNet")
        assert str(path) in str(caught.value) and "\n" not in str(caught.value), name
    assert not (tmp_path / "executed").exists()
    with pytest.raises(InputError, match="not a file"):
        read_state(tmp_path, {}, "FaceNet")
