"""A registered version as MLflow's own client loads it: rows that say who, which expression and where, in; finished portraits out.

The folder of a version, whose MLmodel file names this module:

model/            the saved pipeline with its DLN and preset (diffsfsr.training.run)
words.parquet     labelled expressions of the catalogue it was registered with (diffsfsr.portrait.words)

Nothing of MLflow is imported here, and nothing is pickled: MLflow imports this module and calls `_load_pyfunc`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsfsr.portrait.order import Order
from diffsfsr.portrait.words import WORD_TABLE, WordTable

if TYPE_CHECKING:
    import pandas as pd

MODEL = "model"
# Column -> MLflow's name of its type, and whether a row needs it. The others are the fields of an order.
COLUMNS = {
    **{name: ("string", False) for name in ("selfie", "scene", "prompt")},
    "emotion": ("string", True),
    **{"task": ("string", False), "strength": ("double", False), "steps": ("long", False), "sampler": ("string", False)},
    **{"seed": ("long", False), "face": ("string", False)},
}
EXAMPLE = {"selfie": "selfie.jpg", "scene": "scene.jpg", "emotion": "delight", "seed": 1}


def _load_pyfunc(path: str) -> PortraitModel:
    return PortraitModel(Path(path))


class PortraitModel:
    """What MLflow calls a python model. The networks are loaded by the first prediction."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.words = WordTable(folder / WORD_TABLE)

    @cached_property
    def studio(self) -> Any:
        from diffsfsr.portrait.compose import Studio

        return Studio(self.folder / MODEL)

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """One row per row of the input (a DataFrame or a dictionary with the columns of COLUMNS; files are paths on this machine).

        Column `portrait` holds the finished picture as the bytes of a PNG, `expression` how its word was looked up, as JSON.
        Raises InputError for an order that cannot be fulfilled.
        """
        import pandas as pd

        from diffsfsr.face.images import encode_png
        from diffsfsr.portrait.sitting import sit

        sittings = [sit(order.check(), self.studio, self.words.reference) for order in map(_order, _rows(model_input))]
        made = self.studio.paint([sitting for sitting, _ in sittings])
        told = [json.dumps(found.facts if found else None) for _, found in sittings]
        return pd.DataFrame({"portrait": [encode_png(portrait.image) for portrait in made], "expression": told})


def _rows(model_input: Any) -> Iterable[dict[str, Any]]:
    """Each row as a dictionary; one of plain values is one row. Columns of nothing but text come from MLflow as one row of lists."""
    import pandas as pd

    if isinstance(model_input, Mapping) and not any(isinstance(value, list | tuple) for value in model_input.values()):
        model_input = [model_input]
    table = pd.DataFrame(model_input)
    listed = [name for name in table.columns if table[name].map(lambda value: isinstance(value, list)).any()]
    return (table.explode(listed) if listed else table).to_dict("records")


def _order(row: Mapping[str, Any]) -> Order:
    """A row as an order; a value that is missing (None, NaN) is the order's own default."""
    given = {str(name): value for name, value in row.items() if value is not None and value == value}
    numbers = {name: int(given[name]) for name in ("seed", "steps") if name in given}
    strength = {"strength": float(given["strength"])} if "strength" in given else {}
    selfie = given.pop("selfie", "")
    return Order.from_payload(given | numbers | strength | {"selfies": [selfie] if selfie else []})
