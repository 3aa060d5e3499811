"""The jobs of the graph run from the command line: in this process, on the same instance that the UI shows."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from assets.partitions import TASKS
from assets.stores.workspace import Shard, Workspace, aligned
from diffsfsr import config, presets, tables, weights
from diffsfsr.config import Preset
from diffsfsr.errors import InputError, NotReady
from pipelines.environments import Environment
from pipelines.running import end_orphans, failure, run_job


@dataclass(frozen=True)
class Operator:
    """One person's `diffsfsr run`: a preset with its changes, on one environment."""

    environment: Environment
    preset_name: str
    changes: dict[str, str]

    def __post_init__(self) -> None:
        _ = self.preset  # a setting that is wrong is refused before anything runs

    @cached_property
    def workspace(self) -> Workspace:
        return Workspace(self.environment.home, self.environment.catalogue)

    @cached_property
    def instance(self) -> Any:
        import warnings

        warnings.filterwarnings("ignore", module="dagster")  # previews that Dagster itself uses
        return self.environment.instance()

    @cached_property
    def orphans(self) -> list[str]:
        """Ids of the runs that a killed process of this machine left as started; they are ended here."""
        return end_orphans(self.instance)

    @property
    def preset(self) -> Preset:
        """The diffusion preset of the family, as the assets resolve it."""
        from assets.resources import Settings

        return Settings(preset=self.preset_name, changes=self.changes).resolve()

    # --- jobs ---

    def prepare(self, folder: Path | None, name: str | None = None, split: str = "") -> dict[str, Any]:
        """Bring every stage up to the catalogue up to date, for one folder or all known data sets; returns what there is.

        `split`: published or person; empty: as at the last time.
        """
        from assets.ahead import Ahead

        preset = self.preset
        if name:
            self.workspace.dataset(name)  # refuses a bad one
        for file in weights.used_to_prepare(preset):
            weights.resolve(file)  # what lacks is told before hours of alignment, not after
        names = [self.scan(folder, name, split)] if folder else list(self._scan_known())
        if not names:
            raise InputError("no data set is known yet: give a folder of photographs with --data DIR")
        shards = [shard for each in names for shard in self.workspace.shards(each)]
        with Ahead(self.workspace, preset, shards) as ahead:
            rows = Counter(self.catalogue.faces(["shard"])["shard"].to_pylist())
            pending = [shard for shard in shards if not self._prepared(shard, preset, rows[shard.key])]
            for shard in _counted(pending, "prepare"):
                ahead.wait(shard)
                self.run("prepare", shard.key)
        if self.workspace.network("dln", preset):
            self._encode(preset, shards, again=pending)
        return self._summary(names, preset) | {"shards_computed": len(pending)}

    def _scan_known(self) -> Iterator[str]:
        """Every known data set, its folder listed anew where that is still there."""
        for name in self.workspace.datasets():
            folder = self.workspace.folder_of(name)
            if folder.is_dir():
                self.scan(folder, name)
            else:
                print(f"{name}: its folder {folder} is gone; its faces are kept, `diffsfsr forget` drops them", file=sys.stderr, flush=True)
            yield name

    def scan(self, folder: Path, name: str | None = None, split: str = "") -> str:
        """List a folder's photographs; returns the data set's name."""
        name = name or dataset_name(self.workspace, folder)
        self.workspace.dataset(name)  # refuses a bad name before anything runs
        if name in self.workspace.datasets() and self.workspace.folder_of(name) != folder.resolve():
            raise InputError(f"--name {name}: that data set is the folder {self.workspace.folder_of(name)}; choose another name")
        self.run("scan", ops={"source_images": {"config": {"name": name, "folder": str(folder.resolve()), "split": split}}})
        return name

    def _prepared(self, shard: Shard, preset: Preset, catalogued: int) -> bool:
        """Whether every table of the shard is there and made from what lies there now, and the catalogue has its rows."""
        from assets.embeddings import is_catalogued
        from assets.faces import is_aligned, is_masked

        whole = is_aligned(self.workspace, shard, preset) and is_masked(self.workspace, shard, preset)
        if not whole or not is_catalogued(self.workspace, shard, preset):
            return False
        return tables.read(self.workspace.file(f"catalogued-{preset.crop}", shard)).num_rows == catalogued

    def _encode(self, preset: Preset, shards: list[Shard], again: Sequence[Shard] = ()) -> int:
        """Embed expressions and write training shards, where the networks for them are there; returns how many shards.

        Those named `again` are looked at in any case: a catalogue that was lost has lost their expressions too.
        """
        from assets.shards import is_encoded

        if not self.workspace.network("autoencoder", preset):
            return 0
        pending = [shard for shard in shards if shard in again or not is_encoded(self.workspace, shard, preset)]
        for shard in _counted(pending, "encode"):
            self.run("encode", shard.key)
        return len(pending)

    def train(self) -> dict[str, Any]:
        """Train what the preset names. A diffusion model's autoencoder, DLN and shards are made first where they lack."""
        named = presets.preset(self.preset_name)
        if named.portrays or named.trains == "dln":
            self._teach(self.preset)
        if not named.portrays:
            self.run(f"train_{named.trains}")
            folder, version = self.workspace.need_network(named.trains, named)
            return {"network": named.trains, "folder": str(folder), "version": version}
        preset = self.preset
        if not any(tables.read(self.workspace.file(aligned(preset), shard), ["face_id"]).num_rows for shard in self._aligned(preset)):
            raise NotReady(
                f"no faces of {preset.crop} pixels are prepared yet; run `diffsfsr run prepare --preset {preset.name} --data DIR`"
            )
        if absent := set(config.override(named, self.changes).objective.identity) - set(preset.objective.identity):
            print(f"L_id goes without {', '.join(sorted(absent))}, whose weights are not here", file=sys.stderr, flush=True)
        self.run("experts")
        while self._encode(preset, self._aligned(preset)):
            pass  # a data set that arrives meanwhile is taken along
        self.run("train")
        folder, version = self.workspace.need_network("diffusion", preset)
        return {"network": "diffusion", "folder": str(folder), "version": version, "steps": preset.training.steps}

    def _teach(self, preset: Preset) -> None:
        """What the DLN learns from besides labels, for every prepared shard that lacks it."""
        from assets.supervision import TEACHER, is_taught

        if preset.dln.source or preset.name in presets.TUNED or TEACHER not in preset.dln.triplets:
            return
        pending = [shard for shard in self._aligned(preset) if not is_taught(self.workspace, shard, preset)]
        for shard in _counted(pending, "teach"):
            self.run("teach", shard.key)

    def assess(self) -> dict[str, Any]:
        """Measure the preset's experts on every prepared face; returns the figures."""
        from assets.assessment import report_folder

        self.run("assess")
        folder = report_folder(self.workspace, self.preset)
        return {"report": str(folder / "report.md"), **_json(folder / "report.json")}

    def _aligned(self, preset: Preset) -> list[Shard]:
        return self.workspace.learned(preset)

    def evaluate(self, model: str = "trained") -> dict[str, Any]:
        """Evaluate a model on every prepared data set and task; returns the figures."""
        from assets.evaluation import flat, model_folder, prepared_datasets, report_folder

        figures, preset = {}, self.preset
        registry = self.registry()
        folder, _ = model_folder(self.workspace, registry, preset, model)
        for dataset in prepared_datasets(self.workspace, preset):
            for task in TASKS:
                self.run("evaluate", f"{dataset}|{task}", ops={"evaluation_report": {"config": {"model": model}}})
                report = report_folder(self.workspace, folder, dataset, task, preset)
                figures[f"{dataset}/{task}"] = {"report": str(report / "report.html"), **flat(_json(report / "report.json"))}
        return figures

    def words(self, model: str = "trained", items: int = 0) -> dict[str, Any]:
        """Ask a model for words on every prepared data set that has labels (else on all); returns the figures."""
        from assets import words
        from assets.evaluation import flat, model_folder, prepared_datasets

        figures, preset = {}, self.preset
        folder, _ = model_folder(self.workspace, self.registry(), preset, model)
        for dataset in words.labelled(self.workspace, prepared_datasets(self.workspace, preset), preset):
            self.run("words", dataset, ops={"words_report": {"config": {"model": model, "items": items or words.ITEMS}}})
            report = words.report_folder(self.workspace, self.catalogue, folder, dataset, preset, items or words.ITEMS)
            figures[dataset] = {"report": str(report / "report.html"), **flat(_json(report / "report.json"))}
        return figures

    def midpoints(self, model: str = "trained") -> dict[str, Any]:
        """Compare the midpoint estimates of a model on held-out faces; returns the figures."""
        from assets.evaluation import model_folder
        from assets.midpoints import report_folder

        self.run("midpoints", ops={"midpoint_study": {"config": {"model": model}}})
        folder = report_folder(self.workspace, model_folder(self.workspace, self.registry(), self.preset, model)[0], self.preset)
        return {"report": str(folder / "report.md"), **_json(folder / "report.json")}

    def promote(self, version: int = 0, why: str = "", model: str = "trained") -> dict[str, Any]:
        """Register the newest model or the shipped one, or put a registered version forward, and make it champion where it passes the
        gates."""
        from assets import gates

        gates.read(self.preset.name)  # a file that is wrong is told before hours of evaluation, not after
        change = {"champion": {"config": {"why": why}}, "registered_model": {"config": {"version": version, "model": model}}}
        result = self.run("promote", ops=change, fail=False)
        checks = [c for c in result.get_asset_check_evaluations() if c.check_name == "not_worse_than_champion"]
        if not checks or (checks[0].passed and not result.success):
            raise failure(result)
        number = self.registry().resolve("challenger").version
        answer = {"version": number, "promoted": result.success, "comparison": str(checks[0].metadata["comparison"].value)}
        return answer | self._service()

    def rollback(self, why: str = "") -> dict[str, Any]:
        """Make the champion's predecessor the champion again."""
        self.run("rollback", ops={"champion": {"config": {"why": why}}})
        return self._service()

    def _service(self) -> dict[str, Any]:
        """Which version is champion, and every change of it, newest first."""
        registry = self.registry()
        return {"champion": registry.champion, "history": [asdict(event) for event in reversed(registry.history())]}

    def generate(self) -> dict[str, Any]:
        """Make portraits until no request is waiting; returns how many ended how, and how many other runs hold."""
        ended: Counter[str] = Counter({"done": 0, "failed": 0, "retried": 0, "lost": 0})
        for run in self.orphans:  # what a killed run held need not wait until its leases run out
            self.queue.release(run)
        while self.queue.waiting():
            result = self.run("generate")
            metadata = result.asset_materializations_for_node("portraits")[0].metadata
            ended.update({key: int(metadata[key].value) for key in ended})  # type: ignore[arg-type]
        return dict(ended) | {"held": self.queue.counts()["leased"]}

    # --- one run ---

    def run(self, job: str, partition: str | None = None, ops: dict[str, Any] | None = None, fail: bool = True) -> Any:
        """Run a job in this process, recorded on the instance. An asset's InputError or NotReady comes out as itself."""
        _ = self.orphans
        settings = {"preset": self.preset_name, "changes": self.changes}
        return run_job(job, self.environment, self.instance, settings, partition, ops, fail)

    def registry(self) -> Any:
        from assets.stores.registry import Registry

        return Registry(self.environment.mlflow, self.environment.artifacts)

    @property
    def catalogue(self) -> Any:
        from assets.stores.catalogue import Catalogue

        return Catalogue(self.environment.catalogue)

    @cached_property
    def queue(self) -> Any:
        from assets.stores.queue import Queue

        return Queue(self.environment.queue)

    def _summary(self, names: list[str], preset: Preset) -> dict[str, Any]:
        faces, reasons = 0, Counter[str]()
        for shard in (shard for name in names for shard in self.workspace.shards(name)):
            faces += tables.read(self.workspace.file(aligned(preset), shard), ["face_id"]).num_rows
            reasons.update(tables.read(self.workspace.file(f"rejects-{preset.crop}", shard), ["reason"])["reason"].to_pylist())
        return {"data_sets": names, "faces": faces, "rejected": reasons.total(), "reasons": dict(reasons.most_common())}


def dataset_name(workspace: Workspace, folder: Path) -> str:
    """The folder's own name, made safe; with a number behind it where another folder has that name already."""
    base = safe_name(folder.resolve().name)
    for name in [base, *(f"{base}-{i}" for i in range(2, 1000))]:
        if name not in workspace.datasets() or workspace.folder_of(name) == folder.resolve():
            return name
    raise InputError(f"too many data sets are called {base}: rename the folder")


def safe_name(name: str) -> str:
    """A file's or folder's name as one that a data set can bear."""
    return re.sub(r"\.{2,}", ".", re.sub(r"[^\w.-]+", "_", name)).strip(".") or "data"


def _counted(shards: list[Shard], what: str) -> Iterator[Shard]:
    for number, shard in enumerate(shards, 1):
        print(f"{what} {shard.key} ({number} of {len(shards)})", file=sys.stderr, flush=True)
        yield shard


def _json(path: Path) -> Any:
    import json

    return json.loads(path.read_text(encoding="utf-8"))
