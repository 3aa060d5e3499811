"""`diffsfsr demo`: photographs to portraits through the whole graph, ending with a page that shows them side by side."""

from __future__ import annotations

import base64
import csv
import html
import importlib.util
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffsfsr import tables
from diffsfsr.errors import InputError, NotReady
from diffsfsr.portrait.order import Order
from diffsfsr.portrait.provenance import verify
from pipelines.environments import Environment
from pipelines.operate import Operator

_WHO_IS_WHO = Path(__file__).with_name("demo.csv")
_SHIPPED = "shipped-pictures"  # the name of the data set made of the pictures that the packages ship


def demo(args: Namespace) -> str:
    """prepare -> train (short) -> evaluate -> promote -> three requests -> portraits -> a page."""
    operator = Operator(Environment.current(), args.preset, {})
    folder = Path(args.data) if args.data else None
    if folder and not folder.is_dir():
        raise InputError(f"--data {args.data} is not a folder: give a folder of photographs")
    stages = _Stages()
    with stages.of("prepare", "photographs to aligned faces, masks and embeddings"):
        # The shipped pictures are always there: they carry the expression labels that a folder of one's own may lack.
        prepared = operator.prepare(_shipped(operator.environment.home), _SHIPPED)
        if folder:
            prepared = operator.prepare(folder)
    with stages.of("train", "autoencoder, expression encoder and model, each in a process of its own"):
        trained = operator.train()
    with stages.of("evaluate", "three tasks on held-out people"):
        figures = operator.evaluate()
    with stages.of("promote", "into the registry, past its check"):
        promoted = operator.promote()
    with stages.of("generate", "three queued requests"):
        requests = [operator.queue.get(i) for i in operator.queue.add_all(order.payload() for order in _orders(operator, folder))]
        operator.generate()
    ended = [operator.queue.get(request.id) for request in requests]
    page = operator.environment.home / "demo" / "index.html"
    facts = {**prepared, "training steps": trained["steps"], "model version": promoted["version"], "champion": promoted["promoted"]}
    tables.write_whole(page, lambda p: p.write_text(_page(ended, figures, facts, stages.seconds), encoding="utf-8"))
    failed = [request for request in ended if request.state != "done"]
    if failed:
        raise NotReady(f"{len(failed)} of {len(ended)} portraits failed, the first because: {failed[0].reason}; the page is {page}")
    return f"{len(ended)} portraits in {sum(stages.seconds.values()):.0f} s\nLook at them: file://{page}"


class _Stages:
    """Announces each stage and keeps its time in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def of(self, name: str, about: str) -> Iterator[None]:
        print(f"== {name}: {about}", file=sys.stderr, flush=True)
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
        print(f"== {name} took {self.seconds[name]:.0f} s", file=sys.stderr, flush=True)


# --- what goes in -----------------------------------------------------------------------------------------------------


def _shipped(home: Path) -> Path:
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


def _orders(operator: Operator, folder: Path | None) -> list[Order]:
    """Three requests, one of each task: of the pictures shipped, or of three people of a folder of one's own."""
    shipped = _shipped(operator.environment.home)
    if folder is None:
        selfie, group, portrait = (str(shipped / name) for name in ("Tom_Hanks.png", "six-people.jpg", "astronaut.png"))
        return [
            Order("delight", (selfie,), portrait, seed=1),
            Order("amusement", (portrait,), group, face="2", task="identity", seed=2),
            Order("neutral", (), portrait, task="expression", seed=3),
        ]
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


# --- what comes out ---------------------------------------------------------------------------------------------------

_FIGURES = {  # name in a report: as the page shows it
    "id_top1": "ID top-1 (%)",
    "id_cosine": "ID cosine",
    "expression_distance": "Exp",
    "pose_error": "Pose (degrees)",
    "mse": "MSE",
    "failure_rate": "no face found (%)",
}
_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222}
figure{display:inline-block;margin:0 1rem 1rem 0;vertical-align:top}img{height:14rem;max-width:100%;border-radius:4px}
figcaption{color:#555;font-size:.85rem}section{border-top:1px solid #ddd;padding-top:1rem;margin-top:1rem}
table{border-collapse:collapse;font-size:.9rem}td,th{border:1px solid #ddd;padding:.2rem .6rem;text-align:left}.scroll{overflow-x:auto}
.note{background:#fff6e0;border-left:4px solid #e0a000;padding:.5rem 1rem}"""


def _page(ended: list[Any], figures: dict[str, Any], facts: dict[str, Any], seconds: dict[str, float]) -> str:
    """The demo's page: it needs no other file."""
    steps = facts["training steps"]
    body = [
        "<h1>DiffSFSR demo</h1>",
        f'<p class="note">The model behind these portraits was trained for {steps} steps on a handful of photographs, in this run. '
        "It shows that every stage works, not what the method can do: expect blurred faces.</p>",
        *(_portrait(request) for request in ended),
        "<section><h2>Measured on held-out people</h2>",
        _table(("data set / task", *_FIGURES.values(), "report"), [_measured(name, row) for name, row in figures.items()]),
        "<p>ID is retrieval among the source pictures, Exp the distance of expression embeddings, both times 100; MSE is of "
        "self-reconstruction.</p>",
        "</section><section><h2>How long it took</h2>",
        _table(("stage", "seconds"), [(name, f"{value:.0f}") for name, value in seconds.items()]),
        "</section><section><h2>What there is now</h2>",
        _table(("", ""), [(k, v) for k, v in facts.items()]),
        "<p><code>diffsfsr up</code> shows the same runs in Dagster and MLflow.</p></section>",
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>DiffSFSR demo</title>'
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head><body>{"".join(body)}</body></html>\n'


def _measured(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table: the task's own figures, and MSE of the reconstruction that is measured beside it."""
    task = name.rpartition("/")[2]
    keys = [f"{'reconstruct' if figure == 'mse' else task}_{figure}" for figure in _FIGURES]
    return (name, *(f"{row[key]:.3g}" if key in row else "-" for key in keys), row["report"])


def _portrait(request: Any) -> str:
    order = Order.from_payload(request.payload)
    title = f"{order.emotion}, task {order.task}"
    if request.state != "done":
        return f"<section><h2>{html.escape(title)}</h2><p>{html.escape(request.state)}: {html.escape(str(request.reason))}</p></section>"
    portrait = Path(request.result["portrait"])
    box = verify(portrait)["scene_face"]["box"]
    shown = [*((Path(path), "selfie", None) for path in order.selfies), (Path(order.scene), "scene", None)]
    shown += [(portrait, f"portrait ({request.result['seconds']:.1f} s)", None)]
    shown += [(Path(order.scene), "the scene's face", box), (portrait, "the portrait's", box)]
    return f"<section><h2>{html.escape(title)}</h2>{''.join(_figure(*figure) for figure in shown)}</section>"


def _figure(path: Path, caption: str, box: dict[str, int] | None) -> str:
    """A picture inside the page, or what surrounds a face in it, no larger than it is shown."""
    from diffsfsr.face.images import encode_png, read, resize

    image = read(path)
    if box:
        margin = (box["right"] - box["left"]) // 3
        top, left = max(box["top"] - margin, 0), max(box["left"] - margin, 0)
        image = image[top : box["bottom"] + margin, left : box["right"] + margin]
    scale = min(1.0, 448 / image.shape[0])
    small = resize(image, (round(image.shape[0] * scale), round(image.shape[1] * scale)))
    source = f"data:image/png;base64,{base64.b64encode(encode_png(small)).decode()}"
    return f'<figure><img alt="{html.escape(caption)}" src="{source}"><figcaption>{html.escape(caption)}</figcaption></figure>'


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{"".join(f"<th>{html.escape(h)}</th>" for h in head)}</tr>{cells}</table></div>'
