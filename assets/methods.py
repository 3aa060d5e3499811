"""Other methods on the items that ours is measured on: baselines that run here, and what other programs made of the pairs."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets import heldout, partitions
from assets.evaluation import evaluate_method, flat
from assets.experts import dln_model
from assets.measuring import Bench, Tell, silent
from assets.pictures import picture
from assets.resources import Settings, WorkspaceResource
from assets.stores.registry import content_hash
from assets.stores.workspace import Workspace
from diffsfsr.config import Preset
from diffsfsr.errors import InputError

if TYPE_CHECKING:  # they load torch
    from diffsfsr.evaluation.items import Faces, PairList, Picture
    from diffsfsr.evaluation.methods import Method
    from diffsfsr.evaluation.protocols import Result

_SHOWN = 8  # items of the picture in the asset's metadata


class Other(dg.Config):
    """A method: a baseline by its name, two of them as swap+reenact, or any other name with the folder that holds its outputs."""

    method: str
    outputs: str = ""


@dg.asset(partitions_def=partitions.evaluations, deps=[dln_model], kinds={"torch", "parquet"}, group_name="release", pool="gpu")
def method_rows(context: dg.AssetExecutionContext, config: Other, settings: Settings, workspace: WorkspaceResource) -> dg.MaterializeResult:
    """One row per item of what another method made of a task's pair list: every later report on that list shows the method."""
    from diffsfsr.evaluation.report.numbers import summary
    from diffsfsr.face.images import contact_sheet

    keys = context.partition_key.keys_by_dimension  # type: ignore[attr-defined]
    folder = Path(config.outputs) if config.outputs else None
    task = keys["task"]
    results = measure(workspace.open, config.method, folder, keys["dataset"], task, settings.resolve(), context.log.info)
    return dg.MaterializeResult(
        metadata={
            "method": config.method,
            "items": len(results[0].rows),
            "pictures": picture(contact_sheet(_sheet(results[0]), 80)),
            **flat({"tasks": summary(results)}),
        }
    )


def measure(
    workspace: Workspace, name: str, outputs: Path | None, dataset: str, task: str, preset: Preset, tell: Tell = silent
) -> "list[Result]":
    """What a method gives on a task, and on the reconstructions where it can: a folder of outputs may have none."""
    make = maker(name, outputs, dataset, preset)
    found = [evaluate_method(workspace, make, dataset, task, preset, tell)]
    if outputs is None or (outputs / f"{dataset}-reconstruct").is_dir():
        found.append(evaluate_method(workspace, make, dataset, "reconstruct", preset, tell))
    return found


def maker(name: str, outputs: Path | None, dataset: str, preset: Preset) -> "Callable[[Faces, PairList], Method]":
    """What makes a method over a data set's faces and a pair list. Raises InputError for a name that does not go with `outputs`."""
    from diffsfsr.evaluation import baselines
    from diffsfsr.evaluation.methods import Folder

    if outputs is None:
        make = baselines.maker(name, preset.mask)
        return lambda faces, pairs: make(faces)
    if name in baselines.BASELINES or not re.fullmatch(r"(?!ours)\w[\w.+ -]{0,60}", name):
        raise InputError(
            f"--method {name!r} cannot name another program's outputs: use letters, digits, . + - _, and no name of a baseline"
        )
    return lambda faces, pairs: Folder(faces, pairs, answered(outputs, dataset, pairs), name)


def answered(outputs: Path, dataset: str, pairs: "PairList") -> Path:
    """The folder below `outputs` that answers a pair list, by its name or by what its manifest says. Raises InputError without one."""
    found = answers(outputs, dataset, pairs)
    if found is None:
        raise InputError(
            f"{outputs} does not answer the pair list {pairs.fingerprint}: it needs {dataset}-{pairs.task}/manifest.csv, or a "
            "manifest.csv whose column pairs says so throughout (`diffsfsr run evaluate --export-pairs DIR` writes one)"
        )
    return found


def answers(outputs: Path, dataset: str, pairs: "PairList") -> Path | None:
    """The folder below `outputs` that answers a pair list, or None where none does."""
    from diffsfsr.evaluation.methods import MANIFEST, read_manifest

    if (named := outputs / f"{dataset}-{pairs.task}").is_dir():
        return named
    if not (outputs / MANIFEST).is_file():
        return None
    return outputs if {row.get("pairs") for row in read_manifest(outputs / MANIFEST)} == {pairs.fingerprint} else None


def _sheet(result: "Result") -> "list[list[Picture]]":
    """Four rows of the first items that have a picture: scene, identity, expression, output."""
    made = result.outputs
    if made is None:
        return []
    shown = [(made.pairs.items[i], p) for i in range(min(2 * _SHOWN, len(made))) if (p := made.picture(i)) is not None][:_SHOWN]
    rows = [[made.faces.crops[getattr(item, role)] for item, _ in shown] for role in ("scene", "identity", "expression")]
    return [*rows, [p for _, p in shown]]


# --- out to other programs, and before people ---------------------------------------------------------------------------


def export(
    workspace: Workspace, directory: Path, dataset: str, task: str, preset: Preset, name: str = "", outputs: Path | None = None
) -> dict[str, int]:
    """Write a task's pairs for another program. With a method's `name` the scenes are what that method made of the same pairs."""
    from diffsfsr.evaluation.exchange import export_pairs
    from diffsfsr.face.parsing import parser

    held = heldout.held_out(workspace, dataset, preset)
    pairs = heldout.pair_list(workspace, held, task, preset)
    masks = parser(preset.mask).masks
    if not name:
        return export_pairs(directory, held.faces, pairs, masks, preset=preset.name)
    method = maker(name, outputs, dataset, preset)(held.faces, pairs)

    def first(i: int) -> Any:
        return method([pairs.items[i]], [pairs.seeds[i]])[0]

    return export_pairs(directory, held.faces, pairs, masks, first, preset=preset.name)


def study(workspace: Workspace, model: Path, page: Path, count: int, dataset: str, task: str, preset: Preset) -> dict[str, Any]:
    """Write a page that asks people about a model and every other method measured on the same pairs; returns what it holds."""
    from diffsfsr.evaluation.generation import Ours
    from diffsfsr.evaluation.outputs import Outputs
    from diffsfsr.evaluation.study.page import write_study
    from diffsfsr.portrait.compose import Studio

    bench = Bench.of(workspace, dataset, preset)
    pairs = bench.pairs(task)
    ours = Ours(Studio(model), bench.faces, content_hash(model))
    made = {ours.name: Outputs(workspace.outputs(dataset), ours, pairs, bench.faces)}
    made |= {result.method: result.outputs for result in bench.stored(pairs) if result.outputs is not None}
    return write_study(page, made, pairs, bench.faces, ours=ours.name, count=count, seed=preset.evaluation.seed)
