"""The items of a list sorted by the emotion word of their expression image, up and down the tree of the 135 words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from diffsfsr.emotions import NEUTRAL, TREE, lookup, resolve, word_of
from diffsfsr.errors import InputError, NotReady


class Branch(NamedTuple):
    """A family, a cluster or a word of the tree, and the items that show it.

    The items of a family or a cluster are those labelled with one of its words. Those of a word are what a request for it would be served
    by: `how` is exact, cluster or family, and "" where no label of the list may serve it.
    """

    level: str  # family | cluster | word
    name: str
    how: str
    labels: tuple[str, ...]
    items: tuple[int, ...]


def branches(emotions: Sequence[str]) -> list[Branch]:
    """The whole tree in its order, NEUTRAL last, for a list whose items have these labels ("" for none); nothing where none has one."""
    return list(_branches(emotions)) if any(emotions) else []


def _branches(emotions: Sequence[str]) -> Iterator[Branch]:
    labels = Counter(filter(None, emotions))
    place = {label: word_of(label) for label in labels}

    def showing(chosen: Sequence[str]) -> tuple[int, ...]:
        return tuple(i for i, label in enumerate(emotions) if label in chosen)

    def branch(level: str, name: str, part: Sequence[str]) -> Branch:
        inside = tuple(label for label, word in place.items() if word and word.word in part)
        return Branch(level, name, "", inside, showing(inside))

    def word(name: str) -> Branch:
        try:
            served = resolve(name, labels)
        except (InputError, NotReady):
            return Branch("word", name, "", (), ())
        return Branch("word", name, served.how, served.labels, showing(served.labels))

    for family, clusters in TREE.items():
        yield branch("family", family, [name for names in clusters.values() for name in names])
        for cluster, names in clusters.items():
            yield branch("cluster", cluster, names)
            yield from map(word, names)
    yield branch("family", NEUTRAL.capitalize(), [lookup(NEUTRAL).word])
