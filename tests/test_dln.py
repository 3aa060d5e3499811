"""The expression encoder: its parts against closed forms, and that it learns expressions and not people."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffsfsr import weights
from diffsfsr.config import Data
from diffsfsr.encoders import Encoder
from diffsfsr.encoders.dlib_net import DlibResNet
from diffsfsr.encoders.dln import BACKBONES, AnnotatedDln, CrowdLayer, Dln, Polynomial, triplet_correct, triplet_loss
from diffsfsr.encoders.facenet import InceptionResnetV1
from diffsfsr.encoders.pose_drift import _TAKEN, pose_drift, pose_terms
from diffsfsr.encoders.warp import DLIB_POINTS, dlib_template
from diffsfsr.errors import InputError
from diffsfsr.face import images
from diffsfsr.face.alignment import align


@pytest.fixture(scope="module")
def net() -> DlibResNet:
    return DlibResNet.from_dat(weights.resolve("dlib-face"))


@pytest.fixture(scope="module")
def facenet() -> InceptionResnetV1:
    """FaceNet's form; its published weights are not needed for what is asked of it here."""
    torch.manual_seed(0)
    return InceptionResnetV1()


def face(images: int = 1) -> tuple[Tensor, Tensor]:
    """Random pictures (n, 3, 128, 128), and landmarks as of a face that fills them."""
    landmarks = torch.zeros(images, 68, 2)
    landmarks[:, list(DLIB_POINTS)] = dlib_template(100) + 14
    return torch.rand(images, 3, 128, 128, generator=torch.Generator().manual_seed(1)) * 2 - 1, landmarks


def chips(people: Tensor, classes: Tensor, seed: int) -> Tensor:
    """Synthetic faces (n, 3, 103, 103): the person is a colour and a coarse texture, the class a mouth that is open or shut.

    Smaller than dlib's chip, which its network allows, to save time.
    """
    g = torch.Generator().manual_seed(seed)
    out = []
    for person, kind in zip(people.tolist(), classes.tolist(), strict=True):
        own = torch.Generator().manual_seed(1000 + person)
        coarse = torch.rand(1, 3, 4, 4, generator=own) * 120 + 60
        face = torch.nn.functional.interpolate(coarse, (103, 103), mode="bilinear")[0] + 8 * torch.randn(3, 103, 103, generator=g)
        face[:, 70 : (92 if kind else 74), 32:72] = 25
        out.append(face.clamp(0, 255))
    return torch.stack(out)


def all_triplets(classes: Tensor) -> Tensor:
    y, n = classes.tolist(), len(classes)
    return torch.tensor([(i, j, k) for i in range(n) for j in range(i + 1, n) for k in range(n) if y[i] == y[j] != y[k]])


def accuracy(embed: Callable[[Tensor], Tensor], faces: Tensor, classes: Tensor) -> float:
    with torch.no_grad():
        e, t = embed(faces), all_triplets(classes)
    return triplet_correct(e[t[:, 0]], e[t[:, 1]], e[t[:, 2]]).float().mean().item()


def test_triplet_loss_is_its_formula() -> None:
    g = torch.Generator().manual_seed(0)
    a, p, n = torch.randn(3, 50, 4, generator=g)
    margin = torch.rand(50, generator=g)
    loss, right = triplet_loss(a, p, n, margin), triplet_correct(a, p, n)
    for i in range(50):
        near, far, far2 = (
            sum((x - y) ** 2 for x, y in zip(u[i].tolist(), v[i].tolist(), strict=True)) for u, v in ((a, p), (a, n), (p, n))
        )
        want = max(0.0, near - far + margin[i].item()) + max(0.0, near - far2 + margin[i].item())
        assert loss[i].item() == pytest.approx(want, abs=1e-5) and right[i].item() == (near < far and near < far2)
    torch.testing.assert_close(triplet_loss(p, a, n, margin), loss)
    assert triplet_loss(a, a, a, 0.2).tolist() == pytest.approx([0.4] * 50)


def test_the_polynomial_is_its_formula() -> None:
    layer = Polynomial(3, 2, torch.Generator().manual_seed(0))
    x = torch.tensor([[0.5, -2.0, 3.0]])
    want = [
        sum(layer.w1[r, c].item() * v + layer.w2[r, c].item() * v**2 + layer.w3[r, c].item() * v**3 for c, v in enumerate(x[0].tolist()))
        for r in range(2)
    ]
    assert layer(x)[0].tolist() == pytest.approx(want, rel=1e-5)


def test_the_embedding_is_the_deviation_through_the_polynomial(net: DlibResNet) -> None:
    dln, x = Dln.from_identity(net).eval(), chips(torch.arange(3), torch.tensor([0, 1, 0]), 0)
    with torch.no_grad():
        deviation = torch.sigmoid(10 * dln.trained(x)) - torch.sigmoid(10 * net(x))
        want = dln.projection(deviation)
        got = dln.embed(x)
    torch.testing.assert_close(got, want / want.norm(dim=1, keepdim=True))
    assert got.shape == (3, 16) and deviation.abs().mean() > 0.01  # the twins start apart, or nothing could be learned
    with torch.no_grad():
        for p, q in zip(dln.trained.parameters(), dln.frozen.parameters(), strict=True):
            p.copy_(q)
        assert (dln.embed(x) == 0).all()


def test_the_start_is_seeded(net: DlibResNet) -> None:
    one = Dln.from_identity(net)
    assert one.version == Dln.from_identity(weights.resolve("dlib-face")).version != Dln.from_identity(net, seed=1).version


def test_the_crowd_layer_starts_as_nothing_and_is_one_matrix_an_annotator() -> None:
    crowd, e = CrowdLayer(5), torch.nn.functional.normalize(torch.randn(4, 16), dim=1)
    who = torch.tensor([0, 3, 3, 4])
    torch.testing.assert_close(crowd(e, who), e)
    with torch.no_grad():
        crowd.matrices[3] = -torch.eye(16)
    torch.testing.assert_close(crowd(e, who), e * torch.tensor([1.0, -1, -1, 1])[:, None])
    crowd(e, who).sum().backward()
    gradient = crowd.matrices.grad
    assert gradient is not None and (gradient.abs().sum((1, 2)) > 0).tolist() == [True, False, False, True, True]


def test_what_is_trained_sees_each_face_once_and_each_triplet_as_its_annotator(net: DlibResNet) -> None:
    """Against the naive computation: every face of every triplet encoded by itself, then the annotator's matrix by hand."""
    network = AnnotatedDln(Dln.from_identity(net), 3)
    images, landmarks = face(4)
    triplets, who = torch.tensor([[0, 1, 2], [3, 1, 0], [2, 3, 1], [0, 1, 2]]), torch.tensor([0, 2, 1, 2])
    seen = []
    network.dln.trained.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))

    def naive() -> Tensor:
        rows = [[network.dln(images[i : i + 1], landmarks[i : i + 1])[0] for i in triplet] for triplet in triplets.tolist()]
        seen_by = [[network.crowd.matrices[k] @ e for e in row] for row, k in zip(rows, who.tolist(), strict=True)]
        return torch.stack([torch.stack([e / e.norm() for e in column]) for column in zip(*seen_by, strict=True)])

    first = network(images, landmarks, triplets, who)
    assert seen == [4] and first.shape == (3, 4, 16)
    torch.testing.assert_close(first, naive(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(first[:, 0], first[:, 3])  # at the start all annotators see the same
    with torch.no_grad():
        network.crowd.matrices.add_(0.3 * torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0)))
    later = network(images, landmarks, triplets, who)
    torch.testing.assert_close(later, naive(), atol=1e-5, rtol=1e-4)
    assert (later[:, 0] - later[:, 3]).abs().max() > 0.05


def test_autocast_keeps_the_small_difference_of_the_twins(net: DlibResNet) -> None:
    dln, x = Dln.from_identity(net).eval(), chips(torch.arange(6), torch.tensor([0, 1] * 3), 0)
    with torch.no_grad():
        exact = dln.embed(x)
        with torch.autocast("cpu", torch.bfloat16):
            rough = dln.embed(x)
    assert rough.dtype == torch.float32
    assert (exact * rough).sum(1).min() > 0.99  # their nets alone round; a difference rounded too would be off by tenths


def test_facenets_batch_normalisation_keeps_its_statistics(facenet: InceptionResnetV1) -> None:
    with torch.no_grad():
        for name, buffer in facenet.named_buffers():
            if name.endswith("running_var"):
                buffer.fill_(0.8)  # not what a batch would give
    network = AnnotatedDln(Dln.from_identity(facenet, backbone="facenet"), 1)
    before = {name: value.clone() for name, value in network.dln.named_buffers()}
    images, landmarks = face(3)
    made = network(images, landmarks, torch.tensor([[0, 1, 2]]), torch.tensor([0]))
    triplet_loss(*made, 0.2).mean().backward()
    assert before and all(torch.equal(value, before[name]) for name, value in network.dln.named_buffers())
    assert network.dln.trained.conv2d_1a.conv.weight.grad.abs().sum() > 0 and network.dln.frozen.conv2d_1a.conv.weight.grad is None
    with torch.no_grad():
        alone = torch.cat([network.dln(images[i : i + 1], landmarks[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(alone, made[:, 0], atol=1e-4, rtol=1e-3)


def test_a_deviation_of_facenet_is_neither_flat_nor_saturated(facenet: InceptionResnetV1, net: DlibResNet) -> None:
    """The gain brings each backbone's outputs to where a sigmoid bends: about 1 in size."""
    images, landmarks = face(4)
    for backbone, backbone_net in zip(BACKBONES.values(), (net, facenet), strict=True):
        with torch.no_grad():
            out = Dln.from_identity(backbone_net, backbone=backbone.name).frozen(backbone.chips(images, landmarks))
        assert out.shape == (4, backbone.dim) and 0.3 < (backbone.gain * out).square().mean().sqrt() < 3


def test_an_unknown_backbone_is_refused(net: DlibResNet) -> None:
    with pytest.raises(
        InputError, match="unknown dln.backbone 'facenett'; did you mean 'facenet'|unknown dln.backbone 'facenett'.*facenet"
    ):
        Dln.from_identity(net, backbone="facenett")


@pytest.mark.parametrize("backbone", BACKBONES)
def test_frozen_twin_stays_and_images_get_gradients(backbone: str, net: DlibResNet, facenet: InceptionResnetV1) -> None:
    dln = Dln.from_identity({"dlib": net, "facenet": facenet}[backbone], backbone=backbone)
    assert isinstance(dln, Encoder) and dln.dim == 16 and not dln.centred
    wanted = {id(p) for p in dln.trainable_parameters()}
    assert all((id(p) in wanted) == p.requires_grad for p in dln.parameters())
    assert not any(id(p) in wanted for p in dln.frozen.parameters())
    dln.requires_grad_(False)
    images, landmarks = face()
    out = dln(images.requires_grad_(True), landmarks)
    assert out.norm(dim=1).item() == pytest.approx(1, abs=1e-5)
    out[0, 0].backward()
    assert images.grad is not None and images.grad.isfinite().all()
    assert (images.grad != 0).float().mean() > 0.3


def test_it_learns_the_expression_of_people_it_never_saw(net: DlibResNet) -> None:
    """Every person shows both classes, so that identity is no help; the test people are new."""
    torch.manual_seed(0)
    people, classes = torch.arange(12).repeat_interleave(2), torch.tensor([0, 1]).repeat(12)
    faces, unseen = chips(people, classes, 1), chips(people[:12] + 100, classes[:12], 2)
    dln = Dln.from_identity(net)
    before = dln.frozen.state_dict()["head.weight"].clone()
    start = accuracy(dln.embed, unseen, classes[:12])
    identity = accuracy(lambda x: torch.nn.functional.normalize(net(x) - net(faces).mean(0), dim=1), unseen, classes[:12])
    optimizer = torch.optim.Adam(dln.trainable_parameters(), lr=1e-4)
    first = 0.0
    for _ in range(15):
        some = torch.randperm(12)[:4]
        rows = torch.cat([2 * some, 2 * some + 1])
        t, e = all_triplets(classes[rows]), dln.embed(faces[rows])
        loss = triplet_loss(e[t[:, 0]], e[t[:, 1]], e[t[:, 2]], 0.2).mean()
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    end = accuracy(dln.embed, unseen, classes[:12])
    assert end > 0.9 and end > start + 0.2 and end > identity + 0.2, (start, identity, end)
    assert loss.item() < 0.3 * first
    assert (dln.frozen.state_dict()["head.weight"] == before).all()


# --- the head's pose --------------------------------------------------------------------------------------------------


def turned(count: int, seed: int, astronaut: Path) -> Tensor:
    """(n, 68, 2): the astronaut's landmarks on a dome, the mouth more or less open and wide, all else moved a little too, from
    random sides."""
    found = align(images.read(astronaut), 128, Data()).crop_landmarks
    yaw, pitch, opened, widened = torch.rand(4, count, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5
    flat = torch.from_numpy(found - found.mean(0)).double().repeat(count, 1, 1)
    flat[:, [55, 56, 57, 58, 59, 65, 66, 67], 1] += 16 * (opened + 0.5)
    flat[:, [48, 54], 0] += 12 * widened * torch.tensor([-1.0, 1.0])
    flat += 1.5 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)  # brows, lids, corners
    deep = flat.square().sum(2) / 90  # the further from the middle, the further away
    x, z = flat[..., 0] * yaw.cos() + deep * yaw.sin(), deep * yaw.cos() - flat[..., 0] * yaw.sin()
    return torch.stack([x, flat[..., 1] * pitch.cos() + z * pitch.sin()], 2).float() + 64


def test_the_drift_with_pose_is_found_and_what_goes_with_a_pose_is_left(astronaut: Path) -> None:
    """Embeddings of which all is known: a word each, one of which goes with looking up, a drift, and noise."""
    landmarks, g = turned(1200, 0, astronaut), torch.Generator().manual_seed(1)
    terms = pose_terms(landmarks)
    happy = terms[:, 1] - terms[:, 1].mean() + 0.2 * torch.randn(1200, generator=g) > 0
    words, drift = torch.randn(2, 16, generator=g), 0.2 * torch.randn(4, 16, generator=g)
    embeddings = words[happy.long()] + terms @ drift + 0.02 * torch.randn(1200, 16, generator=g)
    labels = ["happiness" if x else "neutral" for x in happy.tolist()]
    found, blind = pose_drift(embeddings, landmarks, labels), pose_drift(embeddings, landmarks, ["same"] * 1200)

    drift = _TAKEN * drift

    def moved(slope: Tensor) -> float:
        return ((terms - terms.mean(0)) @ slope).square().sum(1).mean().sqrt().item()

    assert moved(found - drift) < 0.15 * moved(drift) and moved(found - drift) < 0.25 * moved(blind - drift)
    assert (pose_drift(embeddings[:100], landmarks[:100], labels[:100]) == 0).all()  # too few to tell


def test_an_embedding_is_less_its_drift(net: DlibResNet, astronaut: Path, tmp_path: Path) -> None:
    found = align(images.read(astronaut), 128, Data())
    picture, landmarks = images.to_tensor(found.crop), torch.from_numpy(found.crop_landmarks)[None]
    dln = Dln.from_identity(net).eval()
    before = dln.version
    with torch.no_grad():
        plain = dln(picture, landmarks)
        torch.testing.assert_close(plain, dln.embed(BACKBONES["dlib"].chips(picture, landmarks)))
        dln.drift.copy_(0.1 * torch.randn(4, 16, generator=torch.Generator().manual_seed(0)))
        want = plain - pose_terms(landmarks) @ dln.drift
        torch.testing.assert_close(dln(picture, landmarks), want / want.norm())
        assert (want / want.norm() - plain).norm() > 0.01 and dln.version != before
        torch.testing.assert_close(dln.posed(want / want.norm(), landmarks), plain)  # back on the same head
        dln.save(tmp_path / "whole")
        dln.save(tmp_path / "half", half=True)
        torch.testing.assert_close(Dln.load(tmp_path / "whole")(picture, landmarks), want / want.norm())
        torch.testing.assert_close(Dln.load(tmp_path / "half")(picture, landmarks), want / want.norm(), atol=5e-3, rtol=0)


def test_a_file_from_before_there_were_drifts_is_read(net: DlibResNet, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    Dln.from_identity(net).save(tmp_path)
    file, settings = tmp_path / "dln.safetensors", tmp_path / "dln.json"
    save_file({name: value for name, value in load_file(file).items() if name != "drift"}, file)
    with pytest.raises(InputError, match="drift is absent"):
        Dln.load(tmp_path)
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"format": 2}))
    assert Dln.load(tmp_path).version == Dln.from_identity(net).version


@pytest.mark.parametrize("backbone", BACKBONES)
def test_save_and_load_give_the_same_network(backbone: str, net: DlibResNet, facenet: InceptionResnetV1, tmp_path: Path) -> None:
    dln = Dln.from_identity({"dlib": net, "facenet": facenet}[backbone], dim=8, seed=3, backbone=backbone)
    x = chips(torch.arange(2), torch.tensor([0, 1]), 0)
    dln.save(tmp_path / "dln")
    assert sorted(p.name for p in (tmp_path / "dln").iterdir()) == ["dln.json", "dln.safetensors"]
    back = Dln.load(tmp_path / "dln")
    assert (
        back.version == dln.version
        and back.backbone.name == backbone
        and not back.training
        and not any(p.requires_grad for p in back.parameters())
    )
    with torch.no_grad():
        assert torch.equal(back.embed(x), dln.eval().embed(x))


def test_it_can_be_trained_on_and_saved_again(net: DlibResNet, tmp_path: Path) -> None:
    Dln.from_identity(net).save(tmp_path)
    again = Dln.load(tmp_path, trainable=True)
    assert all(p.requires_grad for p in again.trainable_parameters())
    with torch.no_grad():
        again.projection.w1.add_(1)
    again.save(tmp_path)
    assert Dln.load(tmp_path).version == again.version


def test_load_refuses_what_save_did_not_write(net: DlibResNet, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    Dln.from_identity(net).save(tmp_path)
    file, settings = tmp_path / "dln.safetensors", tmp_path / "dln.json"
    good, text = file.read_bytes(), settings.read_text()

    def refused(match: str) -> None:
        with pytest.raises(InputError, match=match) as caught:
            Dln.load(tmp_path)
        assert str(tmp_path) in str(caught.value)
        file.write_bytes(good)
        settings.write_text(text)

    tensors = load_file(file)
    save_file(tensors | {"projection.w1": tensors["projection.w1"] + 1}, file)
    refused("not the one that dln.json")
    save_file({k: v for k, v in tensors.items() if k != "projection.w1"}, file)
    refused("projection.w1 is absent")
    save_file(tensors | {"more": torch.zeros(1)}, file)
    refused("more is .1. where nothing belongs")
    save_file(tensors | {"projection.w1": torch.full_like(tensors["projection.w1"], torch.nan)}, file)
    refused("not finite")
    file.write_bytes(good[: len(good) // 2])
    refused("cannot be read as a DLN's weights")
    for change, said in (
        ({"dim": 10**9}, "dim 1000000000"),
        ({"kind": "unet"}, "kind 'unet'"),
        ({"extra": 1}, "must have"),
        ({"backbone": 1}, "must have"),
        ({"backbone": "vgg"}, "is of backbone 'vgg'; known: dlib, facenet"),
        ({"backbone": "facenet"}, "does not fit"),
        ({"format": 1}, "format 1"),
    ):
        settings.write_text(json.dumps(json.loads(text) | change))
        refused(said)
    settings.write_text("{")
    refused("cannot be read as a DLN's settings")
    with pytest.raises(InputError, match="cannot be read as a DLN's settings"):
        Dln.load(tmp_path / "nowhere")
