"""The figures of the paper's Tables 1, 2 and 3 as printed: quoted beside ours, never measured here."""

from __future__ import annotations

from typing import NamedTuple

OURS = "DiffSFSR (the paper's)"
HYBRID = "Hybrid (SimSwap, then StyleHEAT)"  # sec. 4.2: the best of Swap ID by ID., the best of Swap EXP by Exp.


class Quoted(NamedTuple):
    """One row of Table 1 on one data set, or one of Table 3; None where the paper prints none. ID and Exp are times 100."""

    table: str
    task: str  # as `protocols.TASKS`
    data: str
    method: str
    id: float
    exp: float
    pose: float | None  # degrees
    mse: float | None  # 0-255


def _table_1(task: str, method: str, celeba: tuple[float, float, float | None], ff: tuple[float, float, float | None]) -> list[Quoted]:
    return [Quoted("Table 1", task, data, method, *figures, None) for data, figures in (("CelebA-HQ", celeba), ("FF++", ff))]


TABLE_1 = [
    *_table_1("expression", "Face2Face", (87.9, 3.25, None), (96.8, 2.83, None)),
    *_table_1("expression", "StyleHEAT", (98.2, 2.43, None), (97.7, 2.16, None)),
    *_table_1("expression", OURS, (99.9, 0.58, None), (98.9, 0.68, None)),
    *_table_1("identity", "FaceShifter", (94.5, 0.65, 2.13), (95.4, 1.10, 1.62)),
    *_table_1("identity", "SimSwap", (98.8, 0.93, 2.89), (98.0, 1.46, 2.87)),
    *_table_1("identity", "HifiFace", (85.1, 1.11, 3.38), (92.4, 1.80, 3.32)),
    *_table_1("identity", "E4S", (81.6, 2.77, 6.99), (91.5, 2.34, 3.96)),
    *_table_1("identity", OURS, (90.8, 0.32, 2.59), (91.0, 0.49, 3.89)),
    *_table_1("all", HYBRID, (76.9, 2.24, 7.07), (83.5, 2.14, 5.67)),
    *_table_1("all", OURS, (90.2, 0.55, 6.00), (90.7, 0.73, 5.19)),
]
TABLE_3 = [
    Quoted("Table 3", "all", "CelebA-HQ", "without background condition", 81.5, 0.66, 8.97, 51.40),
    Quoted("Table 3", "all", "CelebA-HQ", "without identity embedding 3", 74.9, 0.63, 7.54, 52.09),
    Quoted("Table 3", "all", "CelebA-HQ", "without identity embedding 2", 37.9, 0.56, 7.90, 52.98),
    Quoted("Table 3", "all", "CelebA-HQ", "full model", 87.0, 0.63, 7.36, 51.23),
]
QUOTED = (*TABLE_1, *TABLE_3)


class Opinion(NamedTuple):
    """A mean score of Table 2, from 1 to 5, and the p-value of its difference from the paper's method as printed."""

    mean: float
    p: str = ""


# Table 2, 50 participants: method -> question -> score.
QUESTIONS = ("identity", "expression", "realism", "image quality")
TABLE_2: dict[str, dict[str, Opinion]] = {
    method: dict(zip(QUESTIONS, scores, strict=True))
    for method, scores in {
        "SimSwap": (Opinion(2.84, "p=0.124"), Opinion(3.44, "p<0.001"), Opinion(2.71, "p<0.001"), Opinion(2.69, "p<0.001")),
        "DiffSwap": (Opinion(2.58, "p<0.001"), Opinion(3.59, "p<0.05"), Opinion(3.19, "p<0.005"), Opinion(3.04, "p<0.001")),
        "E4S": (Opinion(2.87, "p=0.232"), Opinion(2.72, "p<0.001"), Opinion(3.04, "p<0.001"), Opinion(3.03, "p<0.001")),
        OURS: (Opinion(3.01), Opinion(3.79), Opinion(3.72), Opinion(3.60)),
    }.items()
}

# What keeps a quoted figure from being compared with a measured one number by number.
PAPER_PROTOCOL = (
    "512 x 512 crops; 1,000 test images of CelebA-HQ, and FF++. Here: the crop side and the data set named above.",
    "Identity is retrieval by CosFace among a set whose size is not given; chance and difficulty depend on it. Here: by the judge named "
    "above, among the sources of this report's items.",
    "Expression is the Euclidean distance of the paper's own 16-d DLN, which also trained its model. Here: of this model's DLN, another "
    "network on another scale, and beside it a judge that trained nothing.",
    "Pose by Hopenet. Here: by the pose judge named above.",
    "No interval, no failures and no chance level are printed. Here: an output without a face counts as a wrong identity.",
    "The paper's Tables 1 and 3 differ for the same full model (90.2 / 0.55 / 6.00 and 87.0 / 0.63 / 7.36): both are quoted.",
    "Sec. 4.3 removes one identity embedding at a time: whether its row 'without ID Emb.2' also lacks the third is not said.",
)
