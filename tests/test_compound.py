"""Several encoders as one, and several selfies as one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffsfsr.encoders.compound import CompoundIdentity, average
from diffsfsr.errors import InputError


class Stub(nn.Module):
    """An encoder that returns its own constant."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.name, self.dim, self.version = f"stub{dim}", dim, str(dim)

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


def test_a_stranger_among_selfies_is_named_and_two_who_disagree_both() -> None:
    g = torch.Generator().manual_seed(0)
    centre, person, stranger = torch.randn(3, 64, generator=g)
    selfies = centre + person + 0.5 * torch.randn(4, 64, generator=g)
    rows = torch.cat([selfies[:2], (centre + stranger)[None], selfies[2:]])
    found = average(rows, ["a", "b", "x", "c", "d"], centre)
    assert found.outliers == ("x",) and found.cosines.argmin() == 2 and found.cosines.shape == (5,)
    assert average(selfies, mean=centre).outliers == ()
    assert average(rows[[0, 2]], ["a", "x"], centre).outliers == ("a", "x")
    # Without the centre every cosine is high when the centre is long, as dlib's is: the stranger hides.
    assert average(rows + 20 * centre).outliers == ()


def test_bad_selfies_are_refused() -> None:
    for bad in (torch.zeros(0, 4), torch.zeros(4), torch.zeros(2, 4), torch.tensor([[1.0, torch.nan]])):
        with pytest.raises(InputError):
            average(bad)
    with pytest.raises(InputError, match="1 selfie names for 2"):
        average(torch.ones(2, 4), ["one"])
