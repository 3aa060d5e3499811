"""Whether the champion still does what it did when it took over: measured again on the items that it was promoted on."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import dagster as dg

from assets import gates, version
from assets.measuring import Bench
from assets.registry import champion, preset_of
from assets.resources import RegistryResource, Settings, WorkspaceResource
from assets.stores.registry import HASH_TAG, ModelVersion
from assets.stores.workspace import Workspace
from diffsfsr.config import Preset
from diffsfsr.errors import NotReady


@dg.asset_check(asset=champion)
def holds_what_it_promised(settings: Settings, workspace: WorkspaceResource, registry: RegistryResource) -> dg.AssetCheckResult:
    """The champion's portraits made anew on its pinned pair lists, against those it was promoted by: a warning where any figure is worse.

    The same weights, faces and noise give the same figures until a library, a driver or a judge changes. A data set that has changed
    is told and not compared.
    """
    try:
        found = registry.open.resolve("champion")
    except NotReady as error:
        return dg.AssetCheckResult(passed=True, metadata={"champion": str(error)})
    preset = preset_of(found, settings)
    rows = [_look(workspace.open, found, name, told, preset) for name, told in version.pins(found.tags).items()]
    worse = [row for row in rows if not row["holds"]]
    lines = [f"| {row['where']} | {row['told']} |" for row in sorted(rows, key=lambda row: row["holds"])]
    return dg.AssetCheckResult(
        passed=not worse,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"comparison": dg.MetadataValue.md("\n".join(["| data set, task | since promotion |", "| --- | --- |", *lines]))},
    )


def _look(workspace: Workspace, found: ModelVersion, name: str, told: dict[str, Any], preset: Preset) -> dict[str, Any]:
    """Which figures of a pinned evaluation have become worse, or why nothing can be said."""
    from diffsfsr.evaluation.report.files import read_results
    from diffsfsr.evaluation.report.numbers import compare

    dataset, _, task = name.rpartition("-")
    where = f"{dataset}, {task}"
    try:
        bench = Bench.of(workspace, dataset, preset)
        pairs = bench.pairs(task)
        if pairs.fingerprint != told["pairs"][task]:
            changed = f"the data set has changed, and is not compared: pair list {told['pairs'][task]} is now {pairs.fingerprint}"
            return {"where": where, "holds": False, "told": changed}
        then = read_results(workspace.home / "reports" / told["report"])[task]
        gaps = compare(_again(bench, found, pairs), then)
    except (NotReady, ValueError) as error:
        return {"where": where, "holds": False, "told": f"not compared: {error}"}
    worse = [f"{figure} {gates.shown(gap)}" for figure, gap in gaps.items() if gap["better"] is False]
    same = all(gap["mean"] in (0, None) for gap in gaps.values())
    return {"where": where, "holds": not worse, "told": "; ".join(worse) or ("every figure the same" if same else "no figure is worse")}


def _again(bench: Bench, found: ModelVersion, pairs: Any) -> Any:
    """A pair list measured anew: nothing that is kept of it is read."""
    from diffsfsr.evaluation.generation import Ours
    from diffsfsr.evaluation.outputs import Outputs
    from diffsfsr.evaluation.protocols import evaluate

    method = Ours(_studio(found.folder), bench.faces, found.tags[HASH_TAG])
    return evaluate(Outputs(None, method, pairs, bench.faces), bench.references, batch=bench.preset.evaluation.batch)


@lru_cache(maxsize=1)
def _studio(folder: Path) -> Any:
    from diffsfsr.portrait.compose import Studio

    return Studio(folder)
