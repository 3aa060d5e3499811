"""The training objective, section 3.2: one value per item, the caller averages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diffsfsr.errors import InputError
from diffsfsr.model.diffusion import NoiseSchedule


def diffusion_loss(pred: Tensor, target: Tensor, weight_mask: Tensor | None = None) -> Tensor:
    """Eq. 3: mean squared error of the network's output (B,C,h,w) -> (B,).

    weight_mask (B,1,h,w), at least 0, weighs the positions and is normalised by its sum, so that a small region counts as
    much as a large one; an item whose weights are all 0 has loss 0.
    """
    per_position = (pred - target).square().mean(1, keepdim=True)
    if weight_mask is None:
        return per_position.flatten(1).mean(1)
    area = weight_mask.flatten(1).sum(1)
    total = (per_position * weight_mask).flatten(1).sum(1)
    return torch.where(area > 0, total / torch.where(area > 0, area, 1.0), 0.0)


def facial_features(landmarks: Tensor, crop: int, size: int) -> Tensor:
    """Where eyes and mouth are, from landmarks (B,68,2) in pixels of crops of side `crop`: (B,1,size,size), 1 at their outlines' points,
    falling off with a fifth of the distance between the eyes as the standard deviation."""
    outlines = landmarks[:, 36:68] * (size / crop)
    eyes = (outlines[:, :6].mean(1) - outlines[:, 6:12].mean(1)).norm(dim=-1)
    centres = torch.arange(size, device=landmarks.device, dtype=landmarks.dtype) + 0.5
    grid = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1).reshape(1, -1, 2)
    away = torch.cdist(grid.expand(len(outlines), -1, -1), outlines).amin(-1) / (0.2 * eyes[:, None]).clamp(min=1e-6)
    return torch.exp(-away.square() / 2).reshape(-1, 1, size, size)


def identity_loss(
    pred: dict[str, Tensor], ref: dict[str, Tensor], means: dict[str, Tensor] | None = None, present: dict[str, Tensor] | None = None
) -> Tensor:
    """Eq. 5: 1 - cosine, averaged over the encoders present in both, name -> (B,D) -> (B,), 0 the same person to 2.

    Embeddings are centred by means[name] (D,) first where it is given: dlib's all point nearly one way. Where present[name]
    (B,) is false the item has no such embedding and the encoder does not count; an item without any has loss 0. Raises
    InputError when no encoder is present in both.
    """
    names = [name for name in pred if pred[name] is not None and ref.get(name) is not None]
    if not names:
        raise InputError(f"no identity encoder is present in both {sorted(pred)} and {sorted(ref)}")
    means = means or {}
    terms = [1 - F.cosine_similarity(_centred(pred, means, n), _centred(ref, means, n), dim=-1) for n in names]
    if present is None:
        return torch.stack(terms).mean(0)
    counts = torch.stack([present[name] for name in names])
    return (torch.stack(terms) * counts).sum(0) / counts.sum(0).clamp(min=1)


def _centred(embeddings: dict[str, Tensor], means: dict[str, Tensor], name: str) -> Tensor:
    return embeddings[name] - means[name].to(embeddings[name]) if name in means else embeddings[name]


def expression_loss(pred: Tensor, ref: Tensor) -> Tensor:
    """Eq. 6: mean square over the expression embedding's dimensions, (B,16) -> (B,)."""
    return (pred - ref).square().mean(-1)


def perceptual_loss(pred: Sequence[Tensor], ref: Sequence[Tensor]) -> Tensor:
    """How far apart two pictures look to a network: its activations (B,C,h,w), layer by layer, each position's scaled to unit length,
    their squared difference summed over channels, averaged over positions and layers -> (B,), 0 alike to 2 with activations of one sign.

    LPIPS (Zhang et al. 2018) without its learned weights of channels.
    """
    terms = [(F.normalize(p, dim=1) - F.normalize(r, dim=1)).square().sum(1).flatten(1).mean(1) for p, r in zip(pred, ref, strict=True)]
    return torch.stack(terms).mean(0)


def total_loss(l_dm: Tensor, l_id: Tensor | None, l_exp: Tensor | None, lambda_id: float, lambda_exp: float) -> Tensor:
    """Eq. 7: L_DM + lambda_1 L_id + lambda_2 L_exp, per item; a term that is None is not there."""
    total = l_dm
    for weight, term in ((lambda_id, l_id), (lambda_exp, l_exp)):
        if term is not None:
            total = total + weight * term
    return total


def min_snr_weight(prediction: str, t: Tensor, schedule: NoiseSchedule, gamma: float) -> Tensor:
    """Hang et al. 2023: what L_DM of a timestep counts, (B,) in 0..1, where an error of z_0 shall count min(SNR, gamma).

    min(SNR, gamma) / SNR for eps, / (SNR + 1) for v. With SNR = alpha_bar / (1 - alpha_bar) both are written without a division
    by zero: where a schedule ends at SNR 0, the weight there is 1 for eps, and 0 for v, as in the authors' own code.
    """
    a = schedule.at(t).flatten()
    if prediction == "epsilon":
        weight = (gamma * (1 - a) / a).clamp(max=1)
    else:
        weight = torch.minimum(a, gamma * (1 - a))
    return weight.float()


def reconstruction_losses(rebuilt: Tensor, images: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
    """Of pictures (B,3,S,S) in [-1, 1], each (B,): 'mae' and 'edges', the absolute error of pixels and of their differences to the
    right and below, in which a pixel counts by `weight` (B,1,S,S), all alike without it; 'loss', their sum; and 'psnr' of all pixels in
    dB, without a gradient."""
    error = rebuilt.float() - images
    right, below = error.diff(dim=-1).abs(), error.diff(dim=-2).abs()
    if weight is None:
        mae, edges = error.abs().flatten(1).mean(1), right.flatten(1).mean(1) + below.flatten(1).mean(1)
    else:
        mae = _weighed(error.abs(), weight)
        edges = _weighed(right, weight[..., 1:]) + _weighed(below, weight[..., 1:, :])
    psnr = 10 * torch.log10(4 / (error.detach().square().flatten(1).mean(1) + 1e-12))
    return {"loss": mae + edges, "mae": mae, "edges": edges, "psnr": psnr}


def _weighed(error: Tensor, weight: Tensor) -> Tensor:
    """The mean (B,) of (B,C,h,w) by weights (B,1,h,w)."""
    return (error.mean(1, keepdim=True) * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)
