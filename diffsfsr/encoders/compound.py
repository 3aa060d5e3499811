"""Several identity encoders as one; any of them may be absent. And several selfies of one person as one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffsfsr import weights
from diffsfsr.encoders import Encoder, load_encoder
from diffsfsr.errors import InputError, NotReady


class CompoundIdentity(nn.Module):
    """The compound identity of a preset: one slot an encoder, in the preset's order; an absent slot gets no embedding.

    (Its token is then the model's learned null token, so that one model serves with any subset of its encoders.)
    """

    absent: dict[str, str]  # the slots without an encoder, and why

    def __init__(self, names: Sequence[str], encoders: Mapping[str, Encoder], absent: Mapping[str, str] | None = None) -> None:
        """`names`: every slot in order. `encoders`: those at hand, by name. `absent`: why the others are not.

        Raises InputError when they do not fit together.
        """
        super().__init__()
        if len(set(names)) != len(names):
            raise InputError(f"conditioning.identity={list(names)} names an encoder twice")
        if unknown := [name for name in encoders if name not in names]:
            raise InputError(f"encoder {unknown[0]!r} is not in conditioning.identity={list(names)}")
        if not encoders:
            raise InputError(f"none of conditioning.identity={list(names)} is present: at least one must be")
        self.names = tuple(names)
        self.encoders = nn.ModuleDict({name: encoders[name] for name in names if name in encoders})  # type: ignore[misc]
        self.absent = {name: (absent or {}).get(name, "left out") for name in names if name not in encoders}

    @classmethod
    def load(cls, names: Sequence[str], absent: Collection[str] = ()) -> CompoundIdentity:
        """The frozen encoders of those names, but for the absent ones. Raises as `load_encoder` does."""
        return cls(names, {name: load_encoder(name) for name in names if name not in absent})

    @classmethod
    def at_hand(cls, names: Sequence[str], commercial_only: bool = False) -> CompoundIdentity:
        """The frozen encoders of those names that this machine has and may use; the others are `absent`, with the reason.

        A file that is there but damaged is an error, not an absence. Raises InputError for it and for an unknown name,
        NotReady where no encoder is left, naming the command that brings the first one or the setting that refuses it.
        """
        encoders: dict[str, Encoder] = {}
        absent: dict[str, str] = {}
        for name in names:
            refused = _not_commercial(name) if commercial_only else ""
            try:
                if not refused:
                    encoders[name] = load_encoder(name)
            except NotReady as missing:
                refused = str(missing)
            if refused:
                absent[name] = refused
        if not encoders:
            name, why = next(iter(absent.items()), ("", "none is named"))
            raise NotReady(f"no identity encoder of conditioning.identity={list(names)} can be used; {name}: {why}")
        return cls(names, encoders, absent)

    @property
    def present(self) -> tuple[str, ...]:
        return tuple(self.encoders)

    @property
    def dims(self) -> dict[str, int]:
        """Width D of each encoder present."""
        return {name: int(encoder.dim) for name, encoder in self.encoders.items()}  # type: ignore[arg-type]

    @property
    def versions(self) -> dict[str, str]:
        """Version of each encoder present."""
        return {name: str(encoder.version) for name, encoder in self.encoders.items()}

    def forward(self, images: Tensor, landmarks: Tensor) -> dict[str, Tensor]:
        """images (B, 3, S, S) in [-1, 1], landmarks (B, 68, 2) -> {name: (B, D)} of those present, in the order of `names`."""
        return {name: encoder(images, landmarks) for name, encoder in self.encoders.items()}


def _not_commercial(name: str) -> str:
    """Why an encoder may not be used commercially, or nothing. An unknown name is left for `load_encoder` to refuse."""
    barred = weights.restricted(weights.files_of(name))
    return f"commercial_only=true refuses {barred[0]}, whose licence is: {weights.ZOO[barred[0]].licence}" if barred else ""


@dataclass(frozen=True)
class Average:
    """One identity of several selfies, from one encoder."""

    embedding: Tensor  # (D,) on the encoder's own scale: of one selfie, that selfie's embedding
    unit: Tensor  # (D,) its direction from the encoder's mean, unit length
    cosines: Tensor  # (n,) each selfie, about no centre, against the mean of the others of the person; 1 for a single one
    outliers: tuple[str, ...]  # names of the selfies that look like somebody else
    kept: tuple[str, ...]  # names of those that the embedding is made of


# Least cosine of two photographs of one person, about no centre: what 1 % of pairs of strangers in LFW exceed (dlib: .907, its
# author's own limit, a distance of 0.6, at embeddings of its length), and about 1 % of pairs of one person miss.
_SAME_PERSON = {"dlib": 0.907, "mobilefacenet_arcface": 0.305, "mobileface_v2": 0.26, "reid0095": 0.25}


def same_person(encoder: str) -> float:
    """The least cosine at which an encoder takes two photographs for one person; for those not measured, a cautious common value."""
    return _SAME_PERSON.get(encoder, 0.3)


def average(embeddings: Tensor, names: Sequence[str] = (), mean: Tensor | None = None, threshold: float = 0.3) -> Average:
    """The mean direction of several selfies of one person, without those that look like somebody else.

    The person is the largest group of selfies that agree with one among them. Where no group is the largest (two selfies
    that disagree, two against two), nobody can say which are wrong: all are named as outliers and all are kept.

    Args:
        embeddings: (n, D), one row a selfie, from one encoder.
        names: n names, for `outliers`; default "1", "2", ...
        mean: (D,), the encoder's training mean, from which directions are averaged; default none.
        threshold: least cosine of two that agree, see `same_person`. It is about no centre: a model's mean may come from so few
            faces that strangers seem alike about it, while an encoder's own scale is the same for every model.
    Raises InputError for no selfie, a wrong number of names, or values without a direction.
    """
    if embeddings.ndim != 2 or len(embeddings) == 0:
        raise InputError(f"selfie embeddings of shape {tuple(embeddings.shape)}: give at least one row")
    names = list(names) or [str(i + 1) for i in range(len(embeddings))]
    if len(names) != len(embeddings):
        raise InputError(f"{len(names)} selfie names for {len(embeddings)} embeddings")
    centre = torch.zeros_like(embeddings[0]) if mean is None else mean.to(embeddings)
    lengths = torch.linalg.vector_norm(embeddings - centre, dim=1, keepdim=True)
    if not (embeddings.isfinite().all() and (lengths > 0).all()):
        raise InputError("a selfie's embedding is not finite or equals the encoder's mean: leave that selfie out")
    units = (embeddings - centre) / lengths
    raw = F.normalize(embeddings, dim=1)
    group = _largest_group(raw @ raw.T >= threshold)
    cosines = _against_the_others(raw, group)
    outlier = (cosines < threshold) if group.any() else torch.ones_like(group)
    kept = ~outlier if (~outlier).sum() >= min(2, len(units)) else torch.ones_like(group)
    unit = F.normalize(units[kept].sum(0), dim=0)
    named, used = (tuple(name for name, chosen in zip(names, which.tolist(), strict=True) if chosen) for which in (outlier, kept))
    return Average(centre + unit * lengths[kept].mean(), unit, cosines, named, used)


def _largest_group(agree: Tensor) -> Tensor:
    """(n, n) bool, symmetric -> (n,) bool: those that agree with the one that most agree with; none where another group is as large."""
    if len(agree) == 1:
        return torch.ones_like(agree[0])
    sizes = agree.sum(1)
    group = agree[sizes.argmax()]
    rivalled = ((sizes == sizes.max()) & ~group).any()
    return group & (group.sum() > 1) & ~rivalled


def _against_the_others(units: Tensor, group: Tensor) -> Tensor:
    """(n,) cosine of each direction to the mean of the group's others; of all the others where there is no group."""
    if len(units) == 1:
        return torch.ones_like(units[:, 0])
    members = group if group.any() else torch.ones_like(group)
    others = units[members].sum(0) - units * members[:, None]
    return F.cosine_similarity(units, others, dim=1)
