"""Several encoders as one, and several selfies as one."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffsfsr.encoders import load_encoder
from diffsfsr.encoders.compound import CompoundIdentity, average, same_person
from diffsfsr.errors import InputError, NotReady


class Stub(nn.Module):
    """An encoder that returns its own constant."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.name, self.dim, self.version, self.centred = f"stub{dim}", dim, str(dim), False

    def forward(self, images: Tensor, landmarks: Tensor) -> Tensor:
        return torch.full((len(images), self.dim), float(self.dim))


def made(names: list[str], **encoders: Any) -> CompoundIdentity:
    return CompoundIdentity(names, encoders)


def test_the_order_is_the_presets_and_absent_slots_are_absent() -> None:
    compound = made(["arc", "dlib", "facenet"], facenet=Stub(4), arc=Stub(2))
    out = compound(torch.zeros(3, 3, 8, 8), torch.zeros(3, 68, 2))
    assert compound.names == ("arc", "dlib", "facenet") and list(out) == ["arc", "facenet"] == list(compound.present)
    assert {k: v.shape for k, v in out.items()} == {"arc": (3, 2), "facenet": (3, 4)}
    assert compound.dims == {"arc": 2, "facenet": 4} and compound.versions == {"arc": "2", "facenet": "4"}


def test_bad_combinations_are_refused() -> None:
    with pytest.raises(InputError, match="at least one"):
        made(["dlib"])
    with pytest.raises(InputError, match="'arc' is not in conditioning.identity"):
        made(["dlib"], arc=Stub(1))
    with pytest.raises(InputError, match="twice"):
        made(["dlib", "dlib"], dlib=Stub(1))
    with pytest.raises(InputError, match="unknown encoder 'nobody'"):
        CompoundIdentity.load(["nobody"])


def test_dlib_alone_is_loaded_and_frozen() -> None:
    compound = CompoundIdentity.load(["arcface", "dlib"], absent=["arcface"])
    assert compound.dims == {"dlib": 128} and not any(p.requires_grad for p in compound.parameters())


def test_one_selfie_is_itself() -> None:
    e, centre = torch.randn(1, 8), torch.randn(8)
    for c in (None, centre):
        found = average(e, mean=c)
        torch.testing.assert_close(found.embedding, e[0])
        assert found.outliers == () and found.unit.norm().item() == pytest.approx(1)


def test_the_mean_is_of_directions_from_the_centre() -> None:
    centre = torch.tensor([10.0, 10.0])
    e = centre + torch.tensor([[3.0, 0.0], [0.0, 1.0]])  # lengths 3 and 1, at right angles
    found = average(e, mean=centre)
    half = 0.5**0.5
    torch.testing.assert_close(found.unit, torch.tensor([half, half]))
    torch.testing.assert_close(found.embedding, centre + 2 * torch.tensor([half, half]))
    torch.testing.assert_close(average(e.flip(0), mean=centre).embedding, found.embedding)


# --- which encoders are at hand -----------------------------------------------------------------------------------------

LAB = ["mobilefacenet_arcface", "dlib", "mobileface_v2"]


def test_a_machine_without_some_weights_has_absent_slots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIFFSFSR_WEIGHTS", str(tmp_path))
    compound = CompoundIdentity.at_hand(LAB)
    assert compound.names == tuple(LAB) and compound.present == ("dlib",) and list(compound.absent) == [LAB[0], LAB[2]]
    assert "diffsfsr weights pull mobileface_v2" in compound.absent["mobileface_v2"]
    with pytest.raises(NotReady, match="facenet.*diffsfsr weights pull facenet"):
        CompoundIdentity.at_hand(["facenet", "mobileface_v2"])
    with pytest.raises(InputError, match="unknown encoder 'dlip'"):
        CompoundIdentity.at_hand(["dlib", "dlip"])


def test_a_commercial_studio_leaves_out_what_its_licence_bars(weights_dir: Path) -> None:
    everything, commercial = CompoundIdentity.at_hand(LAB), CompoundIdentity.at_hand(LAB, commercial_only=True)
    assert everything.present == tuple(LAB) and everything.absent == {}
    assert commercial.present == ("dlib", "mobileface_v2")
    assert commercial.absent.keys() == {"mobilefacenet_arcface"} and "none stated" in commercial.absent["mobilefacenet_arcface"]
    assert everything.dims == {"mobilefacenet_arcface": 128, "dlib": 128, "mobileface_v2": 256}
    with pytest.raises(NotReady, match="commercial_only=true refuses mobilefacenet_arcface"):
        CompoundIdentity.at_hand(["mobilefacenet_arcface"], commercial_only=True)


def test_a_damaged_file_is_no_absence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mobileface_v2.onnx").write_bytes(b"cut off")
    monkeypatch.setenv("DIFFSFSR_WEIGHTS", str(tmp_path))
    with pytest.raises(InputError, match="mobileface_v2"):
        CompoundIdentity.at_hand(LAB)


# --- several selfies ----------------------------------------------------------------------------------------------------


ALIKE = 0.68  # of these made-up embeddings: strangers have about 0.5, one person 0.9


def selfies(*counts: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Centre (64,), embeddings of counts[i] photographs of person i, and names a0, a1, b0, ..."""
    g = torch.Generator().manual_seed(seed)
    centre = torch.randn(64, generator=g)
    rows = [centre + torch.randn(64, generator=g) + 0.5 * torch.randn(n, 64, generator=g) for n in counts]
    return centre, torch.cat(rows), [f"{'abcdef'[i]}{k}" for i, n in enumerate(counts) for k in range(n)]


@pytest.mark.parametrize(
    ("counts", "outliers"),
    [((4,), ""), ((2,), ""), ((4, 1), "b0"), ((2, 1), "b0"), ((3, 2), "b0 b1"), ((2, 1, 1), "b0 c0"), ((3, 1, 1, 1), "b0 c0 d0")],
)
def test_strangers_among_selfies_are_named_and_dropped(counts: tuple[int, ...], outliers: str) -> None:
    centre, rows, names = selfies(*counts)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1)).tolist()
    found = average(rows[order], [names[i] for i in order], centre, ALIKE)
    assert sorted(found.outliers) == outliers.split() and set(found.kept) | set(found.outliers) == set(names)
    own = [i for i, name in enumerate(names) if name.startswith("a")]
    torch.testing.assert_close(
        found.embedding, average(rows[own], mean=centre, threshold=ALIKE).embedding
    )  # as if they had never been there
    assert found.cosines.shape == (len(rows),)
    assert {names[i] for i, cosine in zip(order, found.cosines.tolist(), strict=True) if cosine < ALIKE} == set(found.outliers)


@pytest.mark.parametrize("counts", [(1, 1), (2, 2), (1, 1, 1), (3, 3)])
def test_where_nobody_can_say_who_is_wrong_all_are_named_and_kept(counts: tuple[int, ...]) -> None:
    centre, rows, names = selfies(*counts)
    found = average(rows, names, centre, ALIKE)
    assert found.outliers == tuple(names) == found.kept
    units = torch.nn.functional.normalize(rows - centre, dim=1)
    torch.testing.assert_close(found.unit, torch.nn.functional.normalize(units.mean(0), dim=0))


def test_who_is_a_stranger_does_not_depend_on_the_models_mean() -> None:
    centre, rows, names = selfies(4, 1)
    for mean in (None, centre, rows.mean(0), 5 * rows[0] - 4 * centre):  # the last two as from a handful of faces, strangers among them
        assert average(rows, names, mean, ALIKE).outliers == ("b0",)


def test_dlib_tells_strangers_whatever_few_faces_centred_the_model(six_people: Path, tom_hanks: Path) -> None:
    """Seven people pairwise, about means of three of their faces; and one man in four photographs made of one."""
    from diffsfsr.config import Data
    from diffsfsr.face.alignment import align
    from diffsfsr.face.images import read, to_tensor

    crowd, man = read(six_people), read(tom_hanks)
    shown = [man, np.ascontiguousarray(man[:, ::-1]), (man * 0.6).astype(np.uint8), np.ascontiguousarray(man[::2, ::2])]
    faces = [align(crowd, 128, Data(face=str(i), max_outside=1.0)) for i in range(6)]
    faces += [align(image, 128, Data(max_outside=1.0)) for image in shown]
    landmarks = torch.from_numpy(np.stack([face.crop_landmarks for face in faces]).astype(np.float32))
    with torch.inference_mode():
        e = load_encoder("dlib")(to_tensor(np.stack([face.crop for face in faces])), landmarks)
    limit = same_person("dlib")
    taken_for_one: dict[bool, int] = {True: 0, False: 0}  # about the weak mean, as this was once judged; and now
    for start in range(0, 5):
        mean = e[start : start + 3].mean(0)
        for i, j in itertools.combinations(range(7), 2):
            pair = e[[i, j]]
            taken_for_one[True] += float(torch.cosine_similarity(pair[0] - mean, pair[1] - mean, dim=0)) >= 0.2
            taken_for_one[False] += average(pair, (), mean, limit).outliers == ()
        assert average(e[6:], (), mean, limit).outliers == ()
        assert average(torch.cat([e[6:], e[start : start + 1]]), (), mean, limit).outliers == ("5",)
    assert taken_for_one[False] <= 5 < 20 < taken_for_one[True]  # of 105; one pair of the crowd does look alike


def test_bad_selfies_are_refused() -> None:
    for bad in (torch.zeros(0, 4), torch.zeros(4), torch.zeros(2, 4), torch.tensor([[1.0, torch.nan]])):
        with pytest.raises(InputError):
            average(bad)
    with pytest.raises(InputError, match="1 selfie names for 2"):
        average(torch.ones(2, 4), ["one"])
