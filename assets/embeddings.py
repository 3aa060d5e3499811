"""Embeddings of aligned faces, cached by face and weights, and the catalogue that joins them."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import numpy as np
import pyarrow as pa

from assets import partitions
from assets.faces import aligned_faces, aligned_mark
from assets.pictures import picture
from assets.resources import CatalogueResource, Settings, WorkspaceResource
from assets.stores.catalogue import Catalogue
from assets.stores.workspace import Shard, Workspace, aligned
from diffsfsr import tables
from diffsfsr.config import Preset
from diffsfsr.cores import cores
from diffsfsr.portrait.words import beside
from diffsfsr.presets import embedded_by

T = TypeVar("T")

_BATCH = 32  # what a layer makes of so many still lies in a core's own cache
CATALOGUE_VERSION = 1


@lru_cache(maxsize=4)
def identity_encoder(name: str) -> Any:
    """A frozen identity encoder, loaded once a process."""
    from diffsfsr.encoders import load_encoder

    return load_encoder(name)


@dg.asset(
    partitions_def=partitions.shards, deps=[aligned_faces], kinds={"torch", "lancedb"}, group_name="embeddings", pool="identity_table"
)
def identity_embeddings(
    context: dg.AssetExecutionContext, settings: Settings, workspace: WorkspaceResource, catalogue: CatalogueResource
) -> dg.MaterializeResult:
    """One row per aligned face and identity encoder of the preset, in that encoder's table."""
    preset, shard = settings.resolve(), Shard.of(context.partition_key)
    computed = {
        name: embed_shard(workspace.open, catalogue.open, shard, preset, identity_encoder(name), name) for name in embedded_by(preset)
    }
    return dg.MaterializeResult(metadata={f"computed_{name}": count for name, count in computed.items()})


@dg.asset(
    partitions_def=partitions.shards,
    deps=[aligned_faces, "dln_model"],
    kinds={"torch", "lancedb"},
    group_name="embeddings",
    pool="expression_table",
)
def expression_embeddings(
    context: dg.AssetExecutionContext, settings: Settings, workspace: WorkspaceResource, catalogue: CatalogueResource
) -> dg.MaterializeResult:
    """One row per aligned face: its 16-d DLN embedding."""
    preset, shard = settings.resolve(), Shard.of(context.partition_key)
    dln = load_dln(workspace.open, preset)
    return dg.MaterializeResult(metadata={"computed": embed_shard(workspace.open, catalogue.open, shard, preset, dln, "dln")})


def load_dln(workspace: Workspace, preset: Preset) -> Any:
    """The preset's expression encoder, frozen."""
    from diffsfsr.encoders.dln import Dln

    folder, _ = workspace.need_network("dln", preset)
    return Dln.load(folder).eval().requires_grad_(False)


def embed_shard(workspace: Workspace, catalogue: Catalogue, shard: Shard, preset: Preset, encoder: Any, name: str) -> int:
    """Cache the embeddings that a shard's faces still lack under these weights; returns how many were computed."""
    file = workspace.file(aligned(preset), shard)
    cache = f"{name}_{preset.crop}"
    missing = set(catalogue.missing(cache, encoder.version, tables.read(file, ["face_id"])["face_id"].to_pylist()))
    if missing:
        faces = tables.read(file, ["face_id", "crop", "landmarks"])
        faces = faces.filter(pa.compute.is_in(faces["face_id"], pa.array(sorted(missing))))
        vectors = np.concatenate(list(encode_all(encoder, faces)))
        catalogue.put_embeddings(cache, encoder.version, faces["face_id"].to_pylist(), vectors)
    return len(missing)


def encode_all(encoder: Any, faces: pa.Table) -> Iterator[np.ndarray]:
    """(n, D) embeddings of a table with columns crop and landmarks, batch by batch."""
    batches = (faces.slice(start, _BATCH) for start in range(0, len(faces), _BATCH))
    yield from each_by_a_core(partial(_encode, encoder), batches)


def each_by_a_core(work: Callable[[Any], T], batches: Iterable[Any]) -> Iterator[T]:
    """What `work` makes of each batch, in order. A core computes a batch by itself, beside the others: the threads of one layer would wait
    for the slowest of them in every layer."""
    import torch

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(work, batches)
    finally:
        torch.set_num_threads(before)  # a thread's setting becomes the default of those that follow


def _encode(encoder: Any, faces: pa.Table) -> np.ndarray:
    import torch

    from diffsfsr.face.images import decode, to_tensor

    images = to_tensor(np.stack([decode(png) for png in faces["crop"].to_pylist()]))
    landmarks = torch.tensor(faces["landmarks"].to_pylist()).reshape(-1, 68, 2)
    with torch.inference_mode():
        return encoder(images, landmarks).float().numpy()


@dg.asset(
    partitions_def=partitions.shards,
    deps=[aligned_faces, identity_embeddings, expression_embeddings],
    kinds={"lancedb"},
    group_name="embeddings",
    pool="faces_table",
)
def catalogue(
    context: dg.AssetExecutionContext, settings: Settings, workspace: WorkspaceResource, catalogue: CatalogueResource
) -> dg.MaterializeResult:
    """One row per aligned face: ids, labels, pose and every embedding that is cached for it; no pixels."""
    preset, shard = settings.resolve(), Shard.of(context.partition_key)
    rows = catalogue_shard(workspace.open, catalogue.open, shard, preset)
    return dg.MaterializeResult(metadata={"rows": rows, "rows_in_all": catalogue.open.counts().get("faces", 0)})


def catalogued_mark(workspace: Workspace, shard: Shard, preset: Preset) -> str:
    """What a shard's rows in the catalogue are made from; equal marks mean that nothing is left to do."""
    return tables.fingerprint(aligned_mark(workspace, shard, preset), _versions(workspace, preset), CATALOGUE_VERSION)


def is_catalogued(workspace: Workspace, shard: Shard, preset: Preset) -> bool:
    return tables.mark_of(workspace.file(f"catalogued-{preset.crop}", shard)) == catalogued_mark(workspace, shard, preset)


def _versions(workspace: Workspace, preset: Preset) -> dict[str, str]:
    """Encoder -> version of the weights that the catalogue should hold now."""
    versions = {f"id_{name}": identity_encoder(name).version for name in embedded_by(preset)}
    dln = workspace.network("dln", preset)
    return versions | ({"expression": dln[1]} if dln else {})


def catalogue_shard(workspace: Workspace, catalogue: Catalogue, shard: Shard, preset: Preset) -> int:
    """Upsert a shard's rows, drop those whose photograph is gone, and leave a receipt; returns the number of rows."""
    faces = tables.read(workspace.file(aligned(preset), shard))
    ids = faces["face_id"].to_pylist()
    taken = ("face_id", "path", "sha256", "person", "emotion", "split", "yaw", "pitch", "roll", "face_index")
    columns: dict[str, Any] = {name: faces[name] for name in taken}
    columns |= {"dataset": [shard.dataset] * len(ids), "shard": [shard.key] * len(ids), "size": [preset.crop] * len(ids)}
    for column, version in _versions(workspace, preset).items():
        found = catalogue.get_embeddings(f"{column.removeprefix('id_').replace('expression', 'dln')}_{preset.crop}", version, ids)
        if found:
            width = len(next(iter(found.values())))
            columns[column] = pa.array([found[i].tolist() if i in found else None for i in ids], pa.list_(pa.float32(), width))
            columns[f"{column}_version"] = [version if i in found else None for i in ids]
    gone = sorted(set(catalogue.faces(["face_id"], shard=shard.key)["face_id"].to_pylist()) - set(ids))
    if gone:
        catalogue.forget(face_ids=gone)
    if ids:
        catalogue.upsert_faces(pa.table(columns))
    receipt = pa.table({"face_id": pa.array(ids, pa.string())})
    tables.write(workspace.file(f"catalogued-{preset.crop}", shard), receipt, catalogued_mark(workspace, shard, preset))
    return len(ids)


@dg.asset(deps=[catalogue], kinds={"lancedb"}, group_name="embeddings", pool="faces_table")
def emotion_index(
    context: dg.AssetExecutionContext, settings: Settings, workspace: WorkspaceResource, catalogue: CatalogueResource
) -> dg.MaterializeResult:
    """One row per emotion label: how many faces carry it. The catalogue's indexes are brought up to date."""
    from diffsfsr.evaluation.expression import embedding_map

    preset = settings.resolve()
    folder, version = workspace.open.need_network("dln", preset)
    shipped = beside(folder.parent)  # of a model that brings its words
    labels = (shipped.labels if shipped else {}) | {label: n for label, n in catalogue.open.labels(version=version).items() if label}
    tables.write_json(labels_file(workspace.open.home), labels)
    catalogue.open.index()
    sample = catalogue.open.faces(["emotion", "expression"], expression_version=version).slice(0, 3000)
    shown = sample.filter(pa.compute.and_(pa.compute.is_valid(sample["expression"]), pa.compute.not_equal(sample["emotion"], "")))
    metadata: dict[str, Any] = {"labels": labels, "faces": sum(labels.values())}
    if shown.num_rows > 2:
        vectors, words = np.array(shown["expression"].to_pylist()), shown["emotion"].to_pylist()
        metadata["embedding_map"] = picture(embedding_map(vectors, words, "expression embedding, by label"))
    return dg.MaterializeResult(metadata=metadata)


def labels_file(home: Path) -> Path:
    """Where the labels that the catalogue holds are kept for those who must answer at once."""
    return home / "models" / "labels.json"
