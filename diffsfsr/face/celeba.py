"""CelebA-HQ as published (Karras et al. 2018; Lee et al. 2020 as CelebAMask-HQ): its pictures, whom they show, what is said of them.

CelebA-HQ-img/<i>.jpg                    30,000 pictures
CelebA-HQ-to-CelebA-mapping.txt          idx, orig_idx, orig_file: which picture of CelebA each is
identity_CelebA.txt                      CelebA's file and the number of its person; given by CelebA's authors on request
list_attr_celeba.txt or
CelebAMask-HQ-attribute-anno.txt         a count, the 40 attributes' names, then a file (CelebA's, CelebA-HQ's) and 1 or -1 for each

Of these only the pictures must be there. The texts lie beside their folder, in it, or one folder further up.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from diffsfsr.errors import InputError

PICTURES = "CelebA-HQ-img"
MAPPING, IDENTITY = "CelebA-HQ-to-CelebA-mapping.txt", "identity_CelebA.txt"
ATTRIBUTES = ("list_attr_celeba.txt", "CelebAMask-HQ-attribute-anno.txt")
COUNT, TEST = 30_000, 1_000  # the paper's 29,000 / 1,000 (sec. 4)
SEED = 0  # of the choice: the paper lists none
_LABELS = {"Male": ("gender", "male", "female"), "Eyeglasses": ("glasses", "glasses", "no glasses")}  # attribute -> label, at 1, at -1


def find(root: Path) -> Path | None:
    """The folder of CelebA-HQ's pictures that `root` is or has; None where it is another data set."""
    return next((place for place in (root, root / PICTURES) if place.name == PICTURES and place.is_dir()), None)


def lines(pictures: Path, root: Path) -> dict[str, dict[str, Any]]:
    """File (relative to `root`) -> person, split and labels, for each picture whose name is a number.

    The split is a random choice of pictures as in the paper, so that a person may be on both sides. Without identities each picture
    is a person of its own. Raises InputError for a text that is not of its form.
    """
    original = {cells[0]: cells[2] for cells in _rows(pictures, MAPPING, 3) if cells[0].isdecimal()}
    people = dict(cells for cells in _rows(pictures, IDENTITY, 2))
    labels = _labels(pictures)
    if not people:
        told = f"{pictures}: without {IDENTITY} and {MAPPING} each picture is taken for a person of its own"
        print(told, file=sys.stderr, flush=True)
    held_out = set(np.random.default_rng(SEED).permutation(COUNT)[:TEST].tolist())
    found = {}
    for path in sorted(pictures.glob("*.jpg")):
        if path.stem.isdecimal():
            before, name = original.get(path.stem, ""), path.relative_to(root).as_posix()
            person = f"celeba-{people[before]}" if before in people else f"celeba-hq-{path.stem}"
            split = "test" if int(path.stem) in held_out else "train"
            found[name] = {"person": person, "split": split, "labels": labels.get(path.name) or labels.get(before, {})}
    return found


def _labels(pictures: Path) -> dict[str, dict[str, str]]:
    """File, CelebA's or CelebA-HQ's -> its labels. The two name their files differently: 000001.jpg and 0.jpg."""
    found: dict[str, dict[str, str]] = {}
    for text in ATTRIBUTES:
        rows = _rows(pictures, text)
        next(rows, None)  # the count
        names = next(rows, [])
        places = {names.index(name): entry for name, entry in _LABELS.items() if name in names}
        for file, *values in rows:
            if len(values) != len(names):
                raise InputError(
                    f"{_text(pictures, text)}: {file} has {len(values)} attributes, the header {len(names)}: get the file again"
                )
            found[file] = {label: yes if values[i] == "1" else no for i, (label, yes, no) in places.items()}
    return found


def _text(pictures: Path, name: str) -> Path | None:
    places = (pictures.parent / name, pictures / name, pictures.parent.parent / name)
    return next((place for place in places if place.is_file()), None)


def _rows(pictures: Path, name: str, width: int | None = None) -> Iterator[list[str]]:
    """The words of each line of a text that may be absent. Raises InputError for a line of another number of words than `width`."""
    path = _text(pictures, name)
    if path is None:
        return
    try:
        with open(path, encoding="utf-8-sig") as f:
            for number, line in enumerate(f, 1):
                cells = line.split()
                if cells and width is not None and len(cells) != width:
                    raise InputError(f"{path}, line {number}: {len(cells)} words where {width} are wanted: get the file again")
                if cells:
                    yield cells
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text: {error}") from error
