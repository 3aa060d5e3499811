"""DiffSFSR: simultaneous face swapping and reenactment (CVPR 2024), the method alone.

The rooms, in the order a face walks through them:

    face/         from a file to an aligned face and its mask
    encoders/     frozen experts, one signature: (images, landmarks) -> (B, D)
    model/        the paper's section 3: latents, schedule, tokens, UNet, sampling
    training/     shards -> triplets -> losses -> checkpoints
    evaluation/   per-item metrics, protocols, reports
    portrait/     selfie + scene + word -> finished portrait

Shape legend, used by every docstring:

    B  batch                    S  crop side in pixels        h = S / 8  latent side
    C  latent channels          D  embedding width            K  identity encoders
    N  condition tokens         W  token width                P  68 facial landmarks

Images are RGB: NCHW float in [-1, 1] inside the method, HWC uint8 outside it. Landmarks are (x, y) in pixels with
the centre of the first pixel at (0, 0). Angles are degrees.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Diffusers finds a pipeline's own components as attributes of their top package; they load only when asked for.
_COMPONENTS = {
    "ConditionTokens": "diffsfsr.model.conditioning",
    "LatentAutoencoder": "diffsfsr.model.autoencoder",
    "DiffSFSRPipeline": "diffsfsr.model.pipeline",
}


def __getattr__(name: str) -> Any:
    if name in _COMPONENTS:
        return getattr(import_module(_COMPONENTS[name]), name)
    raise AttributeError(f"module 'diffsfsr' has no attribute {name!r}")
