"""`diffsfsr demo`: portraits by the model that comes with the package, then a model's whole life through the graph, on one page."""

from __future__ import annotations

import csv
import importlib.util
import os
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsfsr import presets
from diffsfsr.errors import InputError, NotReady
from diffsfsr.portrait import shipped
from diffsfsr.portrait.order import Order
from pipelines.environments import Environment
from pipelines.operate import Operator

if TYPE_CHECKING:  # it loads what draws reports
    from pipelines.demo_page import Story

_WHO_IS_WHO = Path(__file__).with_name("demo.csv")
_GATES = Path(__file__).with_name("demo.toml")
_PICTURES = "shipped-pictures"  # the name of the data set made of the pictures that the packages ship
# A minute or two from the shipped model, on faces that may stand at a picture's edge, and as many items as three people can give.
_SHORT = {
    **{"training.steps": "60", "training.batch": "4", "training.warmup": "5", "training.decay_from": "30"},
    **{"data.max_outside": "0.5", "evaluation.items": "6"},
}


def demo(args: Namespace) -> str:
    """Portraits at once; then prepare -> champion -> train on -> evaluate -> gates -> three requests. Where no model comes with the
    package, or a preset is named, the model is trained from nothing and becomes the first champion."""
    folder = Path(args.data) if args.data else None
    if folder and not folder.is_dir():
        raise InputError(f"--data {args.data} is not a folder: give a folder of photographs")
    from pipelines.demo_page import Story

    story = Story(None if args.preset else shipped.folder())
    operator = _operator(args, story)
    pictures = _shipped_pictures(operator.environment.home)
    if story.model:
        _show(story, pictures, operator.environment.home)
    _live(story, operator, pictures, folder)
    page = _tell(story, operator.environment.home, done=True)
    if failed := [request for request in story.requests if request.state != "done"]:
        raise NotReady(f"{len(failed)} of {len(story.requests)} requests failed, one because: {failed[0].reason}; the page is {page}")
    return f"The demo took {sum(story.seconds.values()):.0f} s\nLook at it: file://{page}"


def _operator(args: Namespace, story: Story) -> Operator:
    """By the shipped model's own preset where there is such a model, and past gates that a few minutes can reach."""
    if not story.model:
        return Operator(Environment.current(), args.preset or "demo", {})
    os.environ.setdefault("DIFFSFSR_GATES", str(_GATES))
    return Operator(Environment.current(), presets.tuned(shipped.preset_of(story.model).name), _SHORT)


@contextmanager
def _stage(story: Story, name: str, about: str) -> Iterator[None]:
    """Announces a stage and keeps its time."""
    print(f"== {name}: {about}", file=sys.stderr, flush=True)
    started = time.perf_counter()
    yield
    story.seconds[name] = time.perf_counter() - started
    print(f"== {name} took {story.seconds[name]:.0f} s", file=sys.stderr, flush=True)


def _tell(story: Story, home: Path, done: bool) -> Path:
    from pipelines.demo_page import write

    page, story.done = home / "demo" / "index.html", done
    write(page, story)
    return page


# --- the stages -------------------------------------------------------------------------------------------------------


def _show(story: Story, pictures: Path, home: Path) -> None:
    """What the shipped model can do, to be looked at while the rest is made."""
    with _stage(story, "portraits", "at once, by the model that comes with the package"):
        from pipelines.showcase import showcase

        assert story.model
        story.shown = showcase(story.model, pictures, home / "portraits")
    page = _tell(story, home, done=False)
    print(f"Look at them: file://{page} (it is written again when the rest is done)", file=sys.stderr, flush=True)


def _live(story: Story, operator: Operator, pictures: Path, folder: Path | None) -> None:
    """A model's life through the graph."""
    with _stage(story, "prepare", "photographs to aligned faces, masks and embeddings"):
        # The packages' pictures are always there: they carry the expression labels that a folder of one's own may lack.
        story.facts |= operator.prepare(pictures, _PICTURES)
        if folder:
            story.facts |= operator.prepare(folder)
    if story.model:
        with _stage(story, "champion", "the shipped model, measured and into the registry past the gates"):
            _judge(story, operator, "shipped")
    with _stage(story, "train", "a minute or two from the shipped model" if story.model else "autoencoder, expression encoder and model"):
        story.facts["training steps"] = _train(operator, story)["steps"]
    with _stage(story, "evaluate", "four tasks on the people held out, then the gates"):
        _judge(story, operator, "trained")
    with _stage(story, "generate", "three queued requests, by the champion"):
        ids = operator.queue.add_all(order.payload() for order in _orders(operator, pictures, folder))
        operator.generate()
    story.requests = [operator.queue.get(i) for i in ids]


def _train(operator: Operator, story: Story) -> dict[str, Any]:
    from pipelines.run import tune

    return tune(operator, shipped.NAME, None) if story.model else operator.train()


def _judge(story: Story, operator: Operator, model: str) -> None:
    """Measure a model, the shipped or the trained one, and put it before the gates."""
    from pipelines.demo_page import measured

    reports: dict[str, list[Path]] = {}
    for name, row in operator.evaluate(model).items():
        reports.setdefault(name.rpartition("/")[0], []).append(Path(row["report"]).with_name("report.json"))
    for dataset, files in reports.items():
        story.measured[f"{model}, {dataset}"] = measured(files)
        story.facts[f"reports on the {model} model, {dataset}"] = files[0].parents[1] / "overview.html"
    story.verdicts.append(operator.promote(model=model))
    number = story.verdicts[-1]["champion"]
    story.facts["champion"] = f"version {number}" if number else "none: no version passed the gates"
    passed = "passed the gates" if story.verdicts[-1]["promoted"] else "was refused by the gates"
    print(f"version {story.verdicts[-1]['version']} {passed}; champion: {story.facts['champion']}", file=sys.stderr, flush=True)


# --- what goes in -----------------------------------------------------------------------------------------------------


def _shipped_pictures(home: Path) -> Path:
    """The packages' own pictures in a folder, with a labels.csv that says who is who and which expression each shows."""
    folder = home / "demo" / "photographs"
    folder.mkdir(parents=True, exist_ok=True)
    with open(_WHO_IS_WHO, newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    for name, package, source in {(row["file"], row["package"], row["source"]) for row in rows}:
        found = importlib.util.find_spec(package)
        if not found or not found.origin:
            raise NotReady(f"the package {package}, whose pictures the demo uses, is not installed; run `make setup`")
        if not (folder / name).exists():
            shutil.copyfile(Path(found.origin).parent / source, folder / name)
    kept = ("file", "person", "emotion", "face", "split")
    lines = [",".join(kept), *(",".join(row[k] for k in kept) for row in rows)]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _orders(operator: Operator, pictures: Path, folder: Path | None) -> list[Order]:
    """Three requests, one of each task: of the packages' pictures, or of three people of a folder of one's own."""
    from pipelines.showcase import wishes

    if folder is None:
        return wishes(pictures)
    photographs = _some_people(operator, folder)
    first, second, third = (photographs * 3)[:3]
    return [
        Order("delight", (first,), second, seed=1, face="largest"),
        Order("amusement", (second,), third, task="identity", seed=2, face="largest"),
        Order("neutral", (), third, task="expression", seed=3, face="largest"),
    ]


def _some_people(operator: Operator, folder: Path) -> list[str]:
    """Photographs of up to three people that `folder` gave a face for, one each, without a choice among several faces."""
    from pipelines.operate import dataset_name

    shards = operator.workspace.shards(dataset_name(operator.workspace, folder))
    rows = operator.workspace.table(f"aligned-{operator.preset.crop}", shards, ["path", "person", "face"]).to_pylist()
    by_person = {row["person"]: str(folder / row["path"]) for row in rows if not row["face"]}
    if not by_person:
        raise InputError(f"no photograph in {folder} shows exactly one usable face; `diffsfsr faces {folder}` says why")
    return list(by_person.values())[:3]
