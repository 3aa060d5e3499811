"""Pictures in an asset's metadata: small PNGs, since they live in the event log; large ones go to MLflow."""

from __future__ import annotations

import base64
import io
from typing import Any

import dagster as dg
import numpy as np


def picture(image: np.ndarray) -> dg.MarkdownMetadataValue:
    """HWC uint8 RGB as metadata that the UI shows."""
    from diffsfsr.face.images import encode_png

    return _markdown(encode_png(image))


def figure(fig: Any) -> dg.MarkdownMetadataValue:
    """A matplotlib figure as metadata that the UI shows."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=70, bbox_inches="tight")
    return _markdown(buffer.getvalue())


def _markdown(png: bytes) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(f"![picture](data:image/png;base64,{base64.b64encode(png).decode()})")


def curve(lines: list[dict[str, float]], names: tuple[str, ...]) -> dg.MarkdownMetadataValue:
    """Statistics of a training run over its steps."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(6, 3))
    axes = fig.subplots()
    for name in names:
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=name)
    axes.set_xlabel("step")
    axes.legend()
    return figure(fig)


def embedding_map(vectors: np.ndarray, labels: list[str]) -> dg.MarkdownMetadataValue:
    """(n, D) embeddings on their first two principal components, coloured by label."""
    from matplotlib.figure import Figure

    centred = vectors - vectors.mean(0)
    axes_2d = np.linalg.svd(centred, full_matrices=False)[2][:2]
    points = centred @ axes_2d.T
    fig = Figure(figsize=(5, 4))
    axes = fig.subplots()
    for label in sorted(set(labels)):
        chosen = [i for i, other in enumerate(labels) if other == label]
        axes.scatter(points[chosen, 0], points[chosen, -1], s=6, label=label or "no label")
    axes.legend(fontsize=7)
    return figure(fig)
