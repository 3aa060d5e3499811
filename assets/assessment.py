"""How good the experts are on the faces prepared here: the figures to look at before a model is trained on them."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa

from assets.embeddings import catalogue, embed_shard, identity_encoder
from assets.experts import dln_model, prepared_shards
from assets.pictures import picture
from assets.resources import CatalogueResource, RegistryResource, Settings, WorkspaceResource
from assets.stores.catalogue import Catalogue
from assets.stores.workspace import Workspace, aligned
from assets.supervision import TEACHER
from diffsfsr import tables, weights
from diffsfsr.config import Preset
from diffsfsr.errors import NotReady
from diffsfsr.face.aliases import LFW_ALIASES

ASSESSMENT_VERSION = 3
_SAMPLE = 200  # faces that parsers and pose estimators are compared on
_CENTROIDS = 2000  # training faces that stand for all of them in an expression's centroid


@dg.asset(deps=[catalogue, dln_model], kinds={"torch", "mlflow"}, group_name="experts")
def expert_report(
    context: dg.AssetExecutionContext,
    settings: Settings,
    workspace: WorkspaceResource,
    catalogue: CatalogueResource,
    registry: RegistryResource,
) -> dg.MaterializeResult:
    """One report per preset and state of its faces: identity, expression, masks and pose, with intervals."""
    from diffsfsr.face.images import read

    preset = settings.resolve()
    folder = assess(workspace.open, catalogue.open, preset)
    figures = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    run_id = registry.open.open_run(f"experts-{folder.name}", kind="assessment")
    registry.open.log_stats(run_id, [{"step": 0} | flat(figures)])
    registry.open.log_folder(run_id, folder)
    registry.open.end_run(run_id)
    return dg.MaterializeResult(
        metadata={
            "table": dg.MetadataValue.md((folder / "report.md").read_text(encoding="utf-8")),
            **{file.stem: picture(read(file)) for file in sorted(folder.glob("*.png"))},
            "report": dg.MetadataValue.path(str(folder / "report.md")),
            "mlflow_run": run_id,
        }
    )


def assess(workspace: Workspace, catalogue: Catalogue, preset: Preset) -> Path:
    """Measure the preset's experts, unless that has been done on these faces; returns the report's folder."""
    from diffsfsr.evaluation.experts import Findings, write_report

    folder = report_folder(workspace, preset)
    if tables.is_report(folder, ("facts", "absent"), ("report.md",)):
        return folder
    findings = Findings({}, {})
    bench = Bench(workspace, catalogue, preset)
    for topic, measure in (("identity", bench.identity), ("expression", bench.expression), ("masks", bench.masks), ("pose", bench.pose)):
        try:
            figures, pictures = measure()
        except NotReady as why:
            findings.absent[topic] = str(why)
            continue
        findings.figures[topic] = figures
        findings.pictures.update(pictures)
    write_report(folder, findings, f"The experts of preset {preset.name}", bench.facts)
    return folder


def report_folder(workspace: Workspace, preset: Preset) -> Path:
    """Where the report lies that is made from the preset's faces, networks, settings and the weights on this machine as they are now."""
    marks = [tables.mark_of(workspace.file(aligned(preset), shard)) for shard in prepared_shards(workspace, preset)]
    networks = workspace.network("dln", preset)
    here = sorted(name for name in weights.ZOO if weights.find(name))  # what was not measured for want of a file is, once that is here
    settings = (preset.name, preset.conditioning.identity, preset.evaluation.judge)
    mark = tables.fingerprint(marks, settings, networks and networks[1], here, ASSESSMENT_VERSION)
    return workspace.home / "reports" / f"experts-{mark[:10]}"


def flat(figures: dict[str, Any]) -> dict[str, float]:
    """{topic_name: mean} in names that MLflow takes."""
    found = {}
    for topic in ("identity", "expression", "masks", "pose"):
        for name, entry in figures.get(topic, {}).items():
            if entry["mean"] is not None:
                found[f"{topic}_{name}".replace(", ", "_").replace(": ", "_").replace(" ", "_")] = float(entry["mean"])
    return found


Measured = tuple[dict[str, Any], dict[str, np.ndarray]]  # figures, pictures by caption


class Bench:
    """The faces of a preset, and what is measured on them."""

    def __init__(self, workspace: Workspace, catalogue: Catalogue, preset: Preset) -> None:
        self.workspace, self.catalogue, self.preset = workspace, catalogue, preset
        self.shards = prepared_shards(workspace, preset)
        self.faces = workspace.table(aligned(preset), self.shards, ["face_id", "path", "person", "split"])
        self.facts: dict[str, Any] = {"faces": len(self.faces), "data sets": ", ".join(workspace.datasets())}

    def identity(self) -> Measured:
        """AUC and accuracy of each identity encoder, of the compound and of the judge."""
        from diffsfsr.evaluation import verification
        from diffsfsr.evaluation.judges import pick_identity_judge

        ids, people = self.faces["face_id"].to_pylist(), self.faces["person"].to_pylist()
        odd = {i for i, path in zip(ids, self.faces["path"].to_pylist(), strict=True) if Path(path).stem in verification.LFW_ODD}
        pairs = _most(lambda count: verification.make_pairs(ids, people, count, aliases=LFW_ALIASES, leave_out=odd))
        conditioning = self.preset.conditioning.identity
        found = verification.verify({n: self.vectors(n) for n in conditioning}, self._centred(conditioning), pairs)
        gains = verification.gains(found)
        judge = pick_identity_judge(self.preset.evaluation.judge, conditioning).name
        if judge not in conditioning:
            found += verification.verify({judge: self.vectors(judge)}, self._centred([judge]), pairs)
        self.facts |= {"identity pairs": len(pairs), "identity judge": judge}
        return {f"{v.name}: {what}": getattr(v, what) for v in found for what in ("auc", "accuracy")} | gains, {}

    def vectors(self, name: str) -> np.ndarray:
        """(faces, D) of an encoder, out of the cache; what it lacks is computed."""
        encoder = identity_encoder(name)
        for shard in self.shards:
            embed_shard(self.workspace, self.catalogue, shard, self.preset, encoder, name)
        ids = self.faces["face_id"].to_pylist()
        found = self.catalogue.get_embeddings(f"{name}_{self.preset.crop}", encoder.version, ids)
        return np.array([found[i] for i in ids])

    @staticmethod
    def _centred(names: Any) -> list[str]:
        return [name for name in names if identity_encoder(name).centred]

    def expression(self) -> Measured:
        """The DLN on people held out from its training."""
        from diffsfsr.encoders.dln import Dln
        from diffsfsr.evaluation import expression
        from diffsfsr.training.data import Crops

        dln = Dln.load(self.workspace.need_network("dln", self.preset)[0])
        files = [str(self.workspace.file(aligned(self.preset), shard)) for shard in self.shards]
        held_out = expression.encode(dln, crops := Crops(files, self.preset.crop, "test"), self._coefficients(crops.face_ids))
        trained = expression.encode(dln, Crops(files, self.preset.crop, "train", most=_CENTROIDS))
        return expression.measure(held_out, trained), {f"expression {name}": image for name, image in expression.maps(held_out).items()}

    def _coefficients(self, ids: list[str]) -> np.ndarray | None:
        """(n, 52) of the teacher, where its weights are here."""
        try:
            vectors = self.vectors(TEACHER)
        except NotReady:
            return None
        place = {face: i for i, face in enumerate(self.faces["face_id"].to_pylist())}
        return vectors[[place[i] for i in ids]]

    def masks(self) -> Measured:
        from diffsfsr.evaluation.experts import mask_agreement
        from diffsfsr.face.parsing import PARSERS
        from diffsfsr.weights import find

        here = [name for name, file in PARSERS.items() if not file or find(file)]
        if len(here) < 2:
            raise NotReady(f"only the parser {here[0]} is on this machine; `diffsfsr weights list` names the others")
        figures, sheet = mask_agreement(*self._sample(), here)
        return figures, {"masks": sheet}

    def pose(self) -> Measured:
        import torch

        from diffsfsr.evaluation.experts import pose_agreement
        from diffsfsr.face.images import to_tensor
        from diffsfsr.face.pose import ESTIMATORS, pose_estimator

        crops, landmarks = self._sample()
        images, points = to_tensor(crops), torch.from_numpy(landmarks)
        poses = {}
        for name in ESTIMATORS:
            with suppress(NotReady), torch.inference_mode():
                poses[name] = pose_estimator(name)(images, points).cpu().numpy()
        if len(poses) < 2:
            raise NotReady(f"only the pose estimator {', '.join(poses)} is on this machine; `diffsfsr weights list` names the others")
        return pose_agreement(poses), {}

    def _sample(self) -> tuple[np.ndarray, np.ndarray]:
        """Crops (n, S, S, 3) and landmarks (n, 68, 2) of faces spread over all shards."""
        from diffsfsr.face.images import decode

        table = self.workspace.table(aligned(self.preset), self.shards, ["crop", "landmarks"])
        table = table.take(pa.array(np.linspace(0, len(table) - 1, min(len(table), _SAMPLE)).astype(int)))
        crops = np.stack([decode(png) for png in table["crop"].to_pylist()])
        return crops, np.array(table["landmarks"].to_pylist(), np.float32).reshape(-1, 68, 2)


def _most(make: Callable[[int], Any]) -> Any:
    """The protocol with as many pairs as the faces allow: LFW's 3,000 of each kind, or fewer. NotReady where there are too few for any."""
    for count in (3000, 1000, 300):
        try:
            return make(count)
        except NotReady:
            continue
    return make(100)
