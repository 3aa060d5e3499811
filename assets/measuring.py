"""Methods measured on stored pair lists, each once: rows are kept by pair list and method, outputs by content."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets import heldout
from assets.stores.workspace import Workspace
from diffsfsr import tables
from diffsfsr.config import Preset
from diffsfsr.errors import NotReady
from diffsfsr.portrait import shipped

if TYPE_CHECKING:
    from diffsfsr.evaluation.items import Faces, PairList
    from diffsfsr.evaluation.methods import Method
    from diffsfsr.evaluation.protocols import References, Result

EVALUATION_VERSION = 5  # goes up with every change of what is measured
Tell = Callable[[str], object]


def silent(line: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True, eq=False)
class Bench:
    """A data set's held-out faces and those who judge what methods make of them. What the judges have seen of the photographs serves
    every method and task."""

    workspace: Workspace
    preset: Preset
    held: heldout.HeldOut
    dln: Path  # whose distance is the paper's Exp

    @classmethod
    def of(cls, workspace: Workspace, dataset: str, preset: Preset) -> Bench:
        """The same one as before, where nothing has changed. Raises NotReady without prepared faces or a DLN."""
        from diffsfsr.evaluation.judges import chosen

        dln, version = expression_judge(workspace, preset)
        return _bench(workspace, preset, heldout.held_out(workspace, dataset, preset), dln, (version, *chosen(preset).values()))

    @property
    def faces(self) -> Faces:
        return self.held.faces

    def pairs(self, task: str) -> PairList:
        return heldout.pair_list(self.workspace, self.held, task, self.preset)

    @cached_property
    def references(self) -> References:
        from diffsfsr.encoders.dln import Dln
        from diffsfsr.evaluation.judges import pick_judges
        from diffsfsr.evaluation.protocols import References

        return References(self.faces, pick_judges(self.preset, Dln.load(self.dln)), self.preset.evaluation.batch)

    def measure(self, method: Method, pairs: PairList, tell: Tell = silent, *, kept: bool = True, ours: bool = False) -> Result:
        """What a method gave on a pair list: read where this version of it has been measured by these judges, else measured now.

        `kept` False does not store its pictures: they cost nothing.
        """
        from diffsfsr.evaluation.outputs import Outputs
        from diffsfsr.evaluation.protocols import Result, evaluate

        outputs = Outputs(self.workspace.outputs(self.held.dataset) if kept else None, method, pairs, self.faces)
        folder = self._rows(pairs) / _folder_name(f"ours-{method.version[:10]}" if ours else method.name)
        facts = {"version": method.version, "ours": ours, "protocol": EVALUATION_VERSION}
        known, judges = _head(folder), self.references.judges.describe()
        if known is not None and known == known | facts | {"method": method.name, "judges": judges}:
            with suppress(OSError, ValueError, KeyError):  # rows that were damaged are measured again
                if len((result := Result.load(folder, outputs)).rows) == len(pairs):
                    return result
        what = f"{method.name}, task {pairs.task}"
        result = evaluate(
            outputs, self.references, batch=self.preset.evaluation.batch, progress=lambda done, of: tell(f"{what}: {done} of {of} items")
        )
        result.save(folder, **facts)
        return result

    def bounds(self, pairs: PairList, tell: Tell = silent) -> list[Result]:
        """Floor and ceiling: the scene untouched, and another real photograph of the person."""
        from diffsfsr.evaluation.baselines import RealPhoto, Untouched

        return [self.measure(bound(self.faces), pairs, tell, kept=False) for bound in (Untouched, RealPhoto)]

    def stored(self, pairs: PairList, tell: Tell = silent) -> Iterator[Result]:
        """The other methods that have rows for a pair list. Where other judges gave them, the kept outputs are measured again; a
        method whose outputs are gone is told, and left out."""
        from diffsfsr.evaluation.outputs import Kept

        for head in self._heads(pairs):
            try:
                yield self.measure(Kept(head["method"], head["version"]), pairs, tell)
            except NotReady as missing:
                tell(str(missing))

    def others(self, lists: Sequence[PairList]) -> list[str]:
        """What tells the other methods of some pair lists, and their rows, from others."""
        return [tables.fingerprint(head) for pairs in lists for head in self._heads(pairs)]

    def _heads(self, pairs: PairList) -> list[dict[str, Any]]:
        from diffsfsr.evaluation.baselines import CEILING, FLOOR

        heads = [head for folder in sorted(self._rows(pairs).glob("*")) if (head := _head(folder)) is not None]
        return [head for head in heads if not head["ours"] and head["method"] not in (FLOOR, CEILING)]

    def _rows(self, pairs: PairList) -> Path:
        return self.workspace.home / "reports" / "methods" / pairs.fingerprint


def expression_judge(workspace: Workspace, preset: Preset) -> tuple[Path, str]:
    """(folder, version) of the DLN that measures Exp: the preset's own, or where none was made here that of the shipped model. Raises
    NotReady where there is neither."""
    found, model = workspace.network("dln", preset), shipped.folder()
    if found is None and model is not None:
        found = model / "dln", json.loads((model / "dln" / "dln.json").read_text(encoding="utf-8"))["version"]
    return found or workspace.need_network("dln", preset)


@lru_cache(maxsize=1)
def _bench(workspace: Workspace, preset: Preset, held: heldout.HeldOut, dln: Path, judges: tuple[str, ...]) -> Bench:
    return Bench(workspace, preset, held, dln)


def _folder_name(method: str) -> str:
    plain = re.sub(r"[^\w.+-]+", "_", method).strip(".") or "method"
    return plain if plain == method else f"{plain}-{tables.fingerprint(method)[:6]}"  # 'a b' is not a_b


def _head(folder: Path) -> dict[str, Any] | None:
    """What method.json says of rows that are whole, or None."""
    try:
        head = json.loads((folder / "method.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return head if isinstance(head, dict) and {"method", "version", "ours"} <= head.keys() else None
