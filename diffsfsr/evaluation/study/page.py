"""The human study of the paper's sec. 4.2 and Table 2: one page that asks, kept apart from the key that knows.

    write_study(page, outputs, pairs, faces, ours=..., count=10, seed=0) -> facts    `outputs`: {method: what it made}; see below
    results.study_report(files, key_file) -> report as JSON-like data;   results.markdown(report) -> text
    key_file: key_of(page), or answers.find_key(files, folders)

The page is one file that needs no other and no network. It shows a picture at a time beside its two references and asks what the
paper asked: twice yes or no (is it the person? is it the expression?), and four times a mark from 1 to 5 (identity, expression,
realism, image quality). It never names a method: a picture is known by a random token, and only the key file beside the page says
which token is whose. Who answers sees the items in an order of their own, and within each item the methods in an order of its own.

Among the pictures are checks of attention: the photograph of the identity itself, which shows that person, and a photograph whose
pieces are shuffled, which nobody finds real. Who fails one is counted and left out.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from diffsfsr import tables
from diffsfsr.errors import InputError, NotReady
from diffsfsr.evaluation.items import Faces, Item, PairList, Picture
from diffsfsr.face.images import encode_jpeg

REAL, WRONG = "a real photograph", "a photograph in pieces"  # the checks, as a key names them
_CHECK_EVERY = 5  # items: one of each kind of check among so many
_PIECES = 4  # a side
_TEMPLATE = Path(__file__).with_name("page.html")
_MARK = "STUDY_DATA"  # where the template takes its data


@dataclass(frozen=True)
class Question:
    """One question of the page. `name` is its column in the answers; `low` and `high` say what the ends of the scale mean."""

    name: str
    kind: Literal["yes", "five"]
    text: str
    low: str = "no"
    high: str = "yes"


QUESTIONS = (
    Question("identity_yes", "yes", "Is this the person of the first reference?"),
    Question("expression_yes", "yes", "Is this the expression of the second reference?"),
    Question("identity", "five", "How much is it the same person as in the first reference?", "very different", "the same"),
    Question("expression", "five", "How much is it the same expression as in the second reference?", "very different", "the same"),
    Question("realism", "five", "How real does the picture look, as a photograph?", "clearly made up", "real"),
    Question("quality", "five", "How good is the picture: sharp, clean, without faults?", "bad", "very good"),
)
CHECKS = {REAL: ("identity_yes", 1.0, 1.0), WRONG: ("realism", 1.0, 2.0)}  # check -> question, least and greatest answer that passes


class Made(Protocol):
    """What a method made of a pair list."""

    def picture(self, i: int) -> Picture | None:
        """The output of item i, (S, S, 3) uint8; None where it made none."""
        ...


@dataclass(frozen=True)
class _Shown:
    """One item of the page: its references, and its pictures with whose they are (a method or a check)."""

    index: int  # in the pair list
    item: Item
    pictures: list[tuple[str, Picture]]


def key_of(page: Path) -> Path:
    """Where the key of a page lies: beside it. It must not reach those who answer."""
    return page.with_suffix(".key.json")


def write_study(
    page: Path, outputs: Mapping[str, Made], pairs: PairList, faces: Faces, *, ours: str, count: int = 10, seed: int = 0
) -> dict[str, Any]:
    """Write the page and its key; returns what it holds: page, key, study, items, pictures, and how many items each method made nothing of.

    `count` items are drawn by `seed` from those that every method made a picture of. `ours` is the method that the others are compared
    with. Raises InputError for a `count` below 1, an `ours` that is no method or a page whose key is another study's, NotReady where
    fewer items have all their pictures.
    """
    if count < 1 or ours not in outputs:
        raise InputError(
            f"a study of {count} items of {ours!r} among {', '.join(outputs) or 'no method'}: give 1 or more, and one of these"
        )
    rng = np.random.default_rng(seed)
    drawn, lacking = _drawn(outputs, pairs, count, rng)
    shown = [_with_checks(each, place, faces, rng) for place, each in enumerate(drawn)]
    tokens = _tokens(sum(len(each.pictures) for each in shown), rng)
    data, owners = _page_data(shown, faces, tokens)
    study = {"id": tables.fingerprint(pairs.fingerprint, sorted(outputs), seed, hashlib.sha256(json.dumps(data).encode()).hexdigest())}
    _require_free(key_of(page), study["id"])
    facts = {"study": study["id"], "task": pairs.task, "pairs": pairs.fingerprint, "seed": seed, "ours": ours, "methods": list(outputs)}
    tables.write_json(key_of(page), facts | {"made_nothing": lacking, "pictures": owners})  # first: no page is without its key
    _write_page(page, study | data)
    return {
        "page": str(page),
        "key": str(key_of(page)),
        "study": study["id"],
        "items": count,
        "pictures": len(tokens),
        "made_nothing": lacking,
    }


def _require_free(key: Path, study: str) -> None:
    """Refuse to lose the key of another study: its answers could never be read."""
    try:
        before = json.loads(key.read_text(encoding="utf-8"))["study"] if key.exists() else study
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        before = "unknown"
    if before != study:
        raise InputError(f"{key} is there already, of study {before}, whose answers need it: give --out another name, or remove it")


def _drawn(outputs: Mapping[str, Made], pairs: PairList, count: int, rng: np.random.Generator) -> tuple[list[_Shown], dict[str, int]]:
    """`count` items with a picture of every method; and method -> how many of the items looked at it made nothing of."""
    drawn: list[_Shown] = []
    lacking = dict.fromkeys(outputs, 0)
    for i in map(int, rng.permutation(len(pairs))):
        if len(drawn) == count:
            break
        made = {method: each.picture(i) for method, each in outputs.items()}
        for method, picture in made.items():
            lacking[method] += picture is None
        pictures = [(method, picture) for method, picture in made.items() if picture is not None]
        if len(pictures) == len(outputs):
            drawn.append(_Shown(i, pairs.items[i], pictures))
    if len(drawn) < count:
        why = ", ".join(f"{method} made nothing of {n}" for method, n in lacking.items() if n)
        raise NotReady(
            f"a study of {count} items: only {len(drawn)} of {len(pairs)} have all pictures{f' ({why})' if why else ''}; ask for fewer"
        )
    return drawn, lacking


def _with_checks(shown: _Shown, place: int, faces: Faces, rng: np.random.Generator) -> _Shown:
    """The item, with a check among its pictures where its place is one for that: a real one on the first, a wrong one on the second."""
    identity = faces.crops[shown.item.identity]
    checks = {0: (REAL, identity), 1: (WRONG, _in_pieces(faces.crops[shown.item.scene], rng))}
    check = checks.get(place % _CHECK_EVERY)
    return _Shown(shown.index, shown.item, shown.pictures + ([check] if check else []))


def _in_pieces(picture: Picture, rng: np.random.Generator) -> Picture:
    """The photograph cut into squares that are all elsewhere and turned."""
    side = len(picture) // _PIECES
    cells = [(r * side, c * side) for r in range(_PIECES) for c in range(_PIECES)]
    broken, shift = picture.copy(), int(rng.integers(1, len(cells)))
    for (top, left), (r, c) in zip(cells, cells[shift:] + cells[:shift], strict=True):
        broken[top : top + side, left : left + side] = np.rot90(picture[r : r + side, c : c + side], int(rng.integers(1, 4)))
    return broken


def _tokens(count: int, rng: np.random.Generator) -> list[str]:
    """So many different names that say nothing: the seed behind them is not in the page."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[rng.bytes(6).hex()] = None
    return list(found)


def _page_data(shown: Sequence[_Shown], faces: Faces, tokens: Sequence[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """(what the page is told, token -> whose picture of which item it is). No place in the page tells a method: tokens stand sorted."""
    names: Iterator[str] = iter(tokens)
    pictures: dict[str, str] = {}
    owners: dict[str, dict[str, Any]] = {}
    items = []
    references = sorted({i for each in shown for i in (each.item.identity, each.item.expression)})
    for each in shown:
        own = {next(names): entry for entry in each.pictures}
        pictures |= {token: _encoded(picture) for token, (_, picture) in own.items()}
        owners |= {token: {"whose": whose, "item": each.index, "check": whose in CHECKS} for token, (whose, _) in own.items()}
        place = {role: references.index(getattr(each.item, role)) for role in ("identity", "expression")}
        items.append(place | {"pictures": sorted(own)})
    data = {
        "questions": [asdict(question) for question in QUESTIONS],
        "items": items,
        "references": [_encoded(faces.crops[i]) for i in references],
        "pictures": dict(sorted(pictures.items())),
    }
    return data, owners


def _encoded(picture: Picture) -> str:
    """Every picture in the same way, whoever made it."""
    return f"data:image/jpeg;base64,{base64.b64encode(encode_jpeg(picture)).decode()}"


def _write_page(page: Path, data: Mapping[str, Any]) -> None:
    text = _TEMPLATE.read_text(encoding="utf-8").replace(_MARK, json.dumps(data).replace("<", "\\u003c"), 1)
    tables.write_whole(page, lambda path: path.write_text(text, encoding="utf-8"))
