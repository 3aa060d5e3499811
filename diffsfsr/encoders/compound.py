"""Several identity encoders as one; any of them may be absent. And several selfies of one person as one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffsfsr.encoders import Encoder, load_encoder
from diffsfsr.errors import InputError


class CompoundIdentity(nn.Module):
    """The compound identity of a preset: one slot an encoder, in the preset's order; an absent slot gets no embedding.

    (Its token is then the model's learned null token, so that one model serves with any subset of its encoders.)
    """

    def __init__(self, names: Sequence[str], encoders: Mapping[str, Encoder]) -> None:
        """`names`: every slot in order. `encoders`: those at hand, by name. InputError when they do not fit together."""
        super().__init__()
        if len(set(names)) != len(names):
            raise InputError(f"conditioning.identity={list(names)} names an encoder twice")
        if unknown := [name for name in encoders if name not in names]:
            raise InputError(f"encoder {unknown[0]!r} is not in conditioning.identity={list(names)}")
        if not encoders:
            raise InputError(f"none of conditioning.identity={list(names)} is present: at least one must be")
        self.names = tuple(names)
        self.encoders = nn.ModuleDict({name: encoders[name] for name in names if name in encoders})  # type: ignore[misc]

    @classmethod
    def load(cls, names: Sequence[str], absent: Collection[str] = ()) -> CompoundIdentity:
        """The frozen encoders of those names, but for the absent ones. Raises as `load_encoder` does."""
        return cls(names, {name: load_encoder(name) for name in names if name not in absent})

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


@dataclass(frozen=True)
class Average:
    """One identity of several selfies, from one encoder."""

    embedding: Tensor  # (D,) on the encoder's own scale: of one selfie, that selfie's embedding
    unit: Tensor  # (D,) its direction from the encoder's mean, unit length
    cosines: Tensor  # (n,) each selfie against the mean of the others; 1 for a single one
    outliers: tuple[str, ...]  # names of the selfies below the threshold


def average(embeddings: Tensor, names: Sequence[str] = (), mean: Tensor | None = None, threshold: float = 0.2) -> Average:
    """The mean direction of several selfies of one person, and which of them look like somebody else.

    Outliers are named, not left out: with two selfies that disagree, nobody can say which is wrong (both are named).

    Args:
        embeddings: (n, D), one row a selfie, from one encoder.
        names: n names, for `outliers`; default "1", "2", ...
        mean: (D,), the encoder's training mean, subtracted before any cosine (dlib needs it); default none.
        threshold: least cosine to the mean of the others. Centred, strangers have about 0 and one person 0.5 and more.
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
    unit = F.normalize(units.sum(0), dim=0)
    cosines = torch.ones_like(units[:, 0]) if len(units) == 1 else F.cosine_similarity(units, units.sum(0) - units, dim=1)
    outliers = tuple(name for name, cosine in zip(names, cosines.tolist(), strict=True) if cosine < threshold)
    return Average(centre + unit * lengths.mean(), unit, cosines, outliers)
