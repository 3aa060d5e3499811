"""The 135 emotion words of Shaver et al. (1987) and Parrott (2001), their tree, and the way from a word to a reference face.

    lookup("Glee")                                -> Word("glee", "Cheerfulness", "Joy")
    resolve("glee", {"happiness": 12})            -> Resolution("glee", ("happiness",), "cluster")
    choose_reference(vectors, seed=3)             -> the row of the face whose expression is used

Light on purpose: the command line answers from here without loading numpy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from diffsfsr.errors import InputError, NotReady

if TYPE_CHECKING:
    import numpy as np

_AMONG = 8  # faces near to the mean of a label's, among which its reference is chosen
NEUTRAL = "neutral"  # allowed as a word and as a label, outside the tree: the 135 have none for a face at rest

How = Literal["exact", "cluster", "family"]
Rule = Literal["random", "medoid", "nearest-to-centroid-k"]
RULES: tuple[Rule, ...] = ("random", "medoid", "nearest-to-centroid-k")


class Word(NamedTuple):
    """A word and its place in the tree; NEUTRAL has empty strings for a place."""

    word: str
    secondary: str
    primary: str


class Resolution(NamedTuple):
    """A word as a catalogue can serve it: by the labels named, in the catalogue's own spelling."""

    word: str
    labels: tuple[str, ...]
    how: How


# --- the tree: primary -> secondary -> words ----------------------------------------------------------------------------

_TREE = {
    "Love": {
        "Affection": "adoration affection love fondness liking attraction caring tenderness compassion sentimentality",
        "Lust": "arousal desire lust passion infatuation",
        "Longing": "longing",
    },
    "Joy": {
        "Cheerfulness": "amusement bliss cheerfulness gaiety glee jolliness joviality joy delight enjoyment gladness happiness jubilation "
        "elation satisfaction ecstasy euphoria",
        "Zest": "enthusiasm zeal zest excitement thrill exhilaration",
        "Contentment": "contentment pleasure",
        "Pride": "pride triumph",
        "Optimism": "eagerness hope optimism",
        "Enthrallment": "enthrallment rapture",
        "Relief": "relief",
    },
    "Surprise": {"Surprise": "amazement surprise astonishment"},
    "Anger": {
        "Irritation": "aggravation irritation agitation annoyance grouchiness grumpiness",
        "Exasperation": "exasperation frustration",
        "Rage": "anger rage outrage fury wrath hostility ferocity bitterness hate loathing scorn spite vengefulness dislike resentment",
        "Disgust": "disgust revulsion contempt",
        "Envy": "envy jealousy",
        "Torment": "torment",
    },
    "Sadness": {
        "Suffering": "agony suffering hurt anguish",
        "Sadness": "depression despair hopelessness gloom glumness sadness unhappiness grief sorrow woe misery melancholy",
        "Disappointment": "dismay disappointment displeasure",
        "Shame": "guilt shame regret remorse",
        "Neglect": "alienation isolation neglect loneliness rejection homesickness defeat dejection insecurity embarrassment humiliation "
        "insult",
        "Sympathy": "pity sympathy",
    },
    "Fear": {
        "Horror": "alarm shock fear fright horror terror panic hysteria mortification",
        "Nervousness": "anxiety nervousness tenseness uneasiness apprehension worry distress dread",
    },
}
TREE: dict[str, dict[str, tuple[str, ...]]] = {
    primary: {secondary: tuple(text.split()) for secondary, text in clusters.items()} for primary, clusters in _TREE.items()
}
WORDS: dict[str, Word] = {
    word: Word(word, secondary, primary) for primary, clusters in TREE.items() for secondary, words in clusters.items() for word in words
}

# How data sets spell the labels that mean a word (FER-2013, AffectNet and their kin).
_SPELLINGS = {
    "happy": "happiness",
    "sad": "sadness",
    "angry": "anger",
    "surprised": "surprise",
    "afraid": "fear",
    "fearful": "fear",
    "disgusted": "disgust",
    "contemptuous": "contempt",
}
# The label that stands for a whole family or cluster where its name does not: data sets say happiness where the tree says joy.
_HEADS = {"Joy": ("joy", "happiness"), "Cheerfulness": ("cheerfulness", "happiness", "joy")}
# Where a family has no face at all. Only the two families of positive feeling stand for each other, for their faces smile
# alike; among the others a wrong family gives a wrong face, so that they are refused instead.
RELATED = {"Love": "Joy", "Joy": "Love"}


def lookup(word: str) -> Word:
    """The word's place in the tree. Letter case and surrounding blanks are forgiven.

    Raises InputError for any other word, naming the nearest one.
    """
    name = _canonical(word)
    if name == NEUTRAL:
        return Word(NEUTRAL, "", "")
    if name not in WORDS:
        raise InputError(f"unknown emotion word {_shown(word)}{_near_miss(name)} `diffsfsr emotions` lists all {len(WORDS)}")
    return WORDS[name]


def resolve(word: str, labels: Mapping[str, int], exact: bool = False) -> Resolution:
    """The labels present that serve a word: itself, else its cluster, else its family, else the related family.

    Args:
        labels: label -> number of faces; a label with no face is not present. Labels outside the tree serve only themselves.
        exact: refuse where the word itself has no face.

    Within a cluster or a family the label that bears its name stands for it where there is one (revulsion -> disgust);
    otherwise all labels present there do. A related family is reported as `family`.
    Raises InputError for an unknown word, or where nothing may serve it, naming what is present; NotReady where no face has a label.
    """
    wanted = lookup(word)
    present = _present(labels)
    if not present:
        raise NotReady("no face has an emotion label yet: give photographs with labels (labels.csv) and run `diffsfsr run prepare`")
    if wanted.word in present:
        return Resolution(wanted.word, present[wanted.word], "exact")
    if not exact and wanted.word != NEUTRAL:
        for how, branch, words in _climb(wanted):
            served = _serving(branch, words, present)
            if served:
                return Resolution(wanted.word, served, how)
    raise InputError(_refusal(wanted, labels, exact))


def word_of(label: str) -> Word | None:
    """The place in the tree of a data set's label, in a customary spelling too; None for what is no word. Letter case is forgiven."""
    name = _canonical(label)
    name = _SPELLINGS.get(name, name)
    return lookup(name) if name in WORDS or name == NEUTRAL else None


def is_word(label: str) -> bool:
    """Whether a data set's label is one of the words, NEUTRAL, or a customary spelling of one. Letter case is forgiven."""
    return word_of(label) is not None


def _climb(wanted: Word) -> Iterable[tuple[How, str, Sequence[str]]]:
    """The branches of the tree to try, nearest first, each with its words."""
    yield "cluster", wanted.secondary, TREE[wanted.primary][wanted.secondary]
    for family in (wanted.primary, RELATED.get(wanted.primary)):
        if family:
            yield "family", family, [word for words in TREE[family].values() for word in words]


def _serving(branch: str, words: Sequence[str], present: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The labels present that stand for a branch: the one bearing its name, else all of its words in the tree's order."""
    for head in _HEADS.get(branch, (branch.lower(),)):
        if head in present:
            return present[head]
    return tuple(label for word in words for label in present.get(word, ()))


def _present(labels: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """Canonical word -> the labels that spell it, for labels with at least one face."""
    found: dict[str, tuple[str, ...]] = {}
    for label, count in labels.items():
        name = _canonical(label)
        if count > 0 and name:
            name = _SPELLINGS.get(name, name)
            found[name] = (*found.get(name, ()), label)
    return found


def _refusal(wanted: Word, labels: Mapping[str, int], exact: bool) -> str:
    listed = sorted((label for label in labels if labels[label] > 0), key=lambda label: (-labels[label], label))
    there = ", ".join(f"{label} {labels[label]}" for label in listed[:12]) + (", ..." if len(listed) > 12 else "")
    family = "" if exact or wanted.word == NEUTRAL else f", and none of its family {wanted.primary}"
    return f"no face is labelled {wanted.word!r}{family}: choose a word that the labels present can serve ({there}), or add labelled faces"


def _canonical(word: str) -> str:
    return word.strip().lower()


def _shown(word: str) -> str:
    return repr(word if len(word) <= 40 else word[:37] + "...")


def _near_miss(name: str) -> str:
    import difflib  # costs more to load than the tree

    known = _SPELLINGS.get(name)
    near = [known] if known else difflib.get_close_matches(name[:40], [*WORDS, NEUTRAL], n=1)
    return f": did you mean {near[0]}?" if near else ";"


# --- which face of a label is the reference -----------------------------------------------------------------------------


def at_hand(labels: Mapping[str, int], brought: Mapping[str, int]) -> dict[str, int]:
    """Of label -> number of faces here those that serve, beside the labels that a model brings: with too few faces for a reference to
    pass over wrong labels, a label is the model's own where it brings it."""
    return {label: count for label, count in labels.items() if label and (count >= _AMONG or label not in brought)}


def choose_reference(vectors: np.ndarray, rule: Rule = "nearest-to-centroid-k", seed: int = 0, k: int = _AMONG) -> int:
    """The row of the face whose expression stands for a label.

    Args:
        vectors: (n, D) expression embeddings of the label's faces, n >= 1, finite.
        rule: `random`, the paper's (sec. 4.1); `medoid`, the face with the least mean distance to the others;
            `nearest-to-centroid-k`, one of the k nearest to the mean, which passes over wrong labels and still varies with the seed.

    The same vectors and seed give the same row. Raises InputError for an unknown rule or unusable vectors.
    """
    import numpy as np

    if rule not in RULES:
        raise InputError(f"unknown reference rule {rule!r}; known: {', '.join(RULES)}")
    points = np.asarray(vectors, dtype=np.float64)
    if points.ndim != 2 or len(points) == 0 or not np.isfinite(points).all():
        raise InputError(f"a reference is chosen among finite (n, D) embeddings, n >= 1, not among an array of shape {points.shape}")
    rng = np.random.default_rng(seed)
    if rule == "random":
        return int(rng.integers(len(points)))
    if rule == "medoid":
        return int(np.argmin(_mean_distances(points)))
    away = np.linalg.norm(points - points.mean(axis=0), axis=1)
    nearest = np.argsort(away, kind="stable")[: max(k, 1)]
    return int(nearest[rng.integers(len(nearest))])


def _mean_distances(points: np.ndarray, block: int = 512) -> np.ndarray:
    """(n,) mean Euclidean distance of each point to all, in blocks: a label of a large catalogue has thousands of faces."""
    import numpy as np

    squares = (points**2).sum(axis=1)
    rows = []
    for start in range(0, len(points), block):
        part = slice(start, start + block)
        gaps = squares[part, None] + squares[None, :] - 2 * points[part] @ points.T
        rows.append(np.sqrt(np.maximum(gaps, 0)).mean(axis=1))
    return np.concatenate(rows)
