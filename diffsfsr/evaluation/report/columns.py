"""The metrics as a report prints them, each with the words that explain it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from diffsfsr.evaluation import metrics


class Column(NamedTuple):
    """A metric as it is printed: `name` in the rows, times `scale`; `better` is the direction of a better model."""

    name: str
    title: str
    scale: float
    better: str
    judge: str  # its role in Result.judges; "" for what no network judges
    meaning: str
    tasks: tuple[str, ...] = ()  # where it means something; none named: everywhere
    statistic: Callable[..., float] | None = None  # for what is no mean over items: a number of the columns `of`
    of: tuple[str, ...] = ()


_SWAPS, _SAME = ("all", "identity"), ("reconstruct",)
COLUMNS = (
    Column(
        *("id_top1", "ID top-1, %", 100.0, "higher", "identity"),
        "How often the output is nearest to its own source photograph among all source photographs of the list. An output without a face "
        "counts as wrong.",
    ),
    Column(
        *("id_top5", "ID top-5, %", 100.0, "higher", "identity"),
        "How often its own source is among the five nearest.",
    ),
    Column(
        *("id_cosine", "ID cosine", 1.0, "higher", "identity"),
        "How alike the output and the source person are to the judge: 1 is the same picture, strangers are about 0.",
    ),
    Column(
        *("id_scene_cosine", "Scene's person, cosine", 1.0, "lower", "identity"),
        "How much is left of the person who was in the scene.",
        _SWAPS,
    ),
    Column(
        *("id_ratio", "ID over scene's person", 1.0, "higher", "identity"),
        "How many times more the outputs are like the person they should show than like the one who was in the scene: the ratio of the "
        "two mean cosines, the second taken for .01 where it is lower.",
        _SWAPS,
        metrics.ratio_of_means,
        ("id_cosine", "id_scene_cosine"),
    ),
    Column(
        *("expression_distance", "Exp x 100", 100.0, "lower", "expression"),
        "How far the output's expression is from the expression photograph's, by the network that also tells our model what to show.",
    ),
    Column(
        *("blendshape_distance", "Blendshapes", 1.0, "lower", "coefficients"),
        "The same by 52 coefficients of lids, brows, mouth and jaw, from a network that no part of our model has learned from.",
    ),
    Column(
        *("smile_gap", "Smile off by", 1.0, "lower", "coefficients"),
        "How far the output's smile (0 none, 1 full) is from the one asked for.",
    ),
    Column(
        *("smile_correlation", "Smile, correlation", 1.0, "higher", "coefficients"),
        "Whether the smile follows the one asked for: Pearson's correlation over the items.",
        (),
        metrics.pearson,
        ("smile", "smile_wanted"),
    ),
    Column(
        *("jaw_gap", "Jaw off by", 1.0, "lower", "coefficients"),
        "How far the opening of its jaw (0 shut, 1 wide open) is from the one asked for.",
    ),
    Column(
        *("jaw_correlation", "Jaw, correlation", 1.0, "higher", "coefficients"),
        "Whether the opening of the jaw follows the one asked for: Pearson's correlation over the items.",
        (),
        metrics.pearson,
        ("jaw_open", "jaw_open_wanted"),
    ),
    Column(
        *("pose_error", "Pose, degrees", 1.0, "lower", "pose"),
        "How far the head is turned away from how the scene's was: yaw, pitch and roll together.",
    ),
    Column(
        *("mse", "MSE, 0-255", 1.0, "lower", ""),
        "Mean square difference of the pixels from the photograph, where all three inputs are that one photograph.",
        _SAME,
    ),
    Column(
        *("psnr", "PSNR, dB", 1.0, "higher", ""),
        "The same difference in decibels.",
        _SAME,
    ),
    Column(
        *("ssim", "SSIM", 1.0, "higher", ""),
        "Structural similarity with the photograph; 1 is equal.",
        _SAME,
    ),
    Column(
        *("background", "Background, of 255", 1.0, "lower", "region"),
        "The largest change of any byte outside the facial region: a method's own, where it says which that is. Our paste-back leaves 0.",
    ),
    Column(
        *("seam", "Seam, Lab", 1.0, "lower", "region"),
        "How much more the colour jumps at the edge of the facial region than it does there in the scene itself.",
    ),
    Column(
        *("failure_rate", "No face found, %", 100.0, "lower", ""),
        "Outputs in which no face was found again in its place, or that were not made. They stay in every count.",
    ),
)
BY_NAME = {column.name: column for column in COLUMNS}
MAIN = ("id_top1", "id_cosine", "expression_distance", "blendshape_distance", "pose_error", "failure_rate")
SHORT = ("id_top1", "id_cosine", "expression_distance", "blendshape_distance", "pose_error")  # of parts of a list
SAME = ("mse", "psnr", "ssim", "id_cosine", "expression_distance", "failure_rate")  # of reconstruction
TITLES = {"all": "Swap all", "identity": "Swap identity", "expression": "Swap expression", "reconstruct": "Reconstruct"}
ROLES_OF = {  # task -> the photographs that an item shows, as they are called there
    "all": {"scene": "Scene", "identity": "Identity", "expression": "Expression"},
    "identity": {"scene": "Scene and expression", "identity": "Identity"},
    "expression": {"scene": "Scene and identity", "expression": "Expression"},
    "reconstruct": {"scene": "Photograph"},
}
