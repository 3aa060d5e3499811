"""What the model that comes with the package shows at once, without the graph: three wishes, one person in six words, a travel."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from assets.portraits import Serving, begin, finish
from diffsfsr.errors import InputError
from diffsfsr.portrait.order import Order
from diffsfsr.portrait.travel import Travel
from pipelines import demo_page as page
from pipelines import travel

if TYPE_CHECKING:  # it loads torch
    from diffsfsr.evaluation.report.figures import Figure

WORDS = ("neutral", "amusement", "astonishment", "anger", "sadness", "fright")  # a face at rest, and five families
STATIONS, FRAMES = ("neutral", "amusement", "astonishment"), 7


def wishes(photographs: Path) -> list[Order]:
    """One of each task, of the pictures that the packages ship."""
    selfie, group, portrait = (str(photographs / name) for name in ("Tom_Hanks.png", "six-people.jpg", "astronaut.png"))
    return [
        Order("delight", (selfie,), portrait, seed=1),
        Order("amusement", (portrait,), group, face="2", task="identity", seed=2),
        Order("neutral", (), portrait, task="expression", seed=3),
    ]


def showcase(model: Path, photographs: Path, folder: Path) -> list[Figure]:
    """Portraits by a model that stands alone, each with its sidecar in `folder`, as figures of the page."""
    serving = Serving.shipped(model, folder)
    portraits = [page.portrait(path) for order in wishes(photographs) for path in _made([order], serving)]
    group, person = str(photographs / "six-people.jpg"), str(photographs / "astronaut.png")
    words = _made([Order(word, (person,), group, face="2", seed=1) for word in _served(WORDS, serving)], serving)
    wanted = Travel(scene=person, task="expression", through=_served(STATIONS, serving), frames=FRAMES, seed=5).check()
    return [*portraits, page.words(words), page.strip(*travel.fulfil(wanted, serving, folder / "travel.png"))]


def _served(words: Sequence[str], serving: Serving) -> tuple[str, ...]:
    """The words that the model has an expression for: its data may have shown it no face of a family."""
    found = []
    for word in words:
        with suppress(InputError):
            serving.expression(word, 0)
            found.append(word)
    return tuple(found)


def _made(orders: Sequence[Order], serving: Serving) -> list[Path]:
    """The portraits of some orders, painted together."""
    commissions = [begin(order, serving) for order in orders]
    painted = serving.studio.paint([commission.sitting for commission in commissions])
    sidecars = (finish(commission, made, serving) for commission, made in zip(commissions, painted, strict=True))
    return [Path(sidecar["portrait"]) for sidecar in sidecars]
