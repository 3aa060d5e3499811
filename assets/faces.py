"""From photographs to aligned faces and their masks."""

import dataclasses
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np

from assets import partitions
from assets.images import source_images
from assets.pictures import picture
from assets.resources import Settings, WorkspaceResource
from assets.stores.workspace import Shard, Workspace, aligned
from diffsfsr import tables
from diffsfsr.config import Preset
from diffsfsr.cores import cores
from diffsfsr.face import collection

# Part of the fingerprints below: raise one where the code that makes the table starts to give other results.
ALIGNMENT_VERSION, MASK_VERSION = 1, 1


def aligned_mark(workspace: Workspace, shard: Shard, preset: Preset) -> str:
    """What a shard's aligned faces are made from: its photographs and the settings of alignment."""
    return tables.fingerprint(tables.mark_of(workspace.file("sources", shard)), _alignment_settings(preset))


def _alignment_settings(preset: Preset) -> dict[str, Any]:
    data = dataclasses.asdict(preset.data)
    relevant = ("face", "min_face", "max_yaw", "max_outside", "max_pixels")
    return {k: data[k] for k in relevant} | {"crop": preset.crop, "v": ALIGNMENT_VERSION}


@dg.asset(
    partitions_def=partitions.shards,
    deps=[source_images],
    kinds={"dlib", "parquet"},
    group_name="faces",
    check_specs=[dg.AssetCheckSpec("every_photograph_accounted_for", asset="aligned_faces", blocking=True)],
)
def aligned_faces(context: dg.AssetExecutionContext, settings: Settings, workspace: WorkspaceResource) -> dg.MaterializeResult:
    """One row per aligned face, and one row per photograph that is none, with the reason."""
    preset, shard = settings.resolve(), Shard.of(context.partition_key)
    computed = align_shard(workspace.open, shard, preset)
    faces = tables.read(workspace.open.file(aligned(preset), shard))
    rejects = tables.read(workspace.open.file(f"rejects-{preset.crop}", shard), ["reason"])
    sheet = _sheet(faces["crop"].to_pylist()[:24], faces["landmarks"].to_pylist()[:24], preset.crop)
    return dg.MaterializeResult(
        metadata={
            "faces": faces.num_rows,
            "rejected": rejects.num_rows,
            "reasons": dict(Counter(rejects["reason"].to_pylist())),
            "computed": computed,
            **({"contact_sheet": picture(sheet)} if sheet is not None else {}),
        },
        data_version=dg.DataVersion(aligned_mark(workspace.open, shard, preset)),
        check_results=[_accounted_for(workspace.open, shard, preset)],
    )


def _accounted_for(workspace: Workspace, shard: Shard, preset: Preset) -> dg.AssetCheckResult:
    """Every photograph of the shard is a face or a reject, and none is both."""
    sources, faces, rejects = (
        [(row["path"], row["face"]) for row in tables.read(workspace.file(kind, shard), ["path", "face"]).to_pylist()]
        for kind in ("sources", aligned(preset), f"rejects-{preset.crop}")
    )
    metadata = {"photographs": len(sources), "faces": len(faces), "rejects": len(rejects)}
    return dg.AssetCheckResult(passed=sorted(sources) == sorted(faces + rejects), metadata=metadata)


def align_shard(workspace: Workspace, shard: Shard, preset: Preset) -> int:
    """Bring a shard's aligned faces and rejects up to date; returns how many photographs had to be looked at.

    Rows of photographs that have not changed are kept. One process at a time works on a shard.
    """
    with workspace.lock(f"align-{preset.crop}-{shard.key}"):
        faces_file, rejects_file = workspace.file(aligned(preset), shard), workspace.file(f"rejects-{preset.crop}", shard)
        mark = aligned_mark(workspace, shard, preset)
        if tables.mark_of(faces_file) == mark and tables.mark_of(rejects_file) == mark:
            return 0
        rows = tables.read(workspace.file("sources", shard)).to_pylist()
        old_faces, old_rejects = _reusable(faces_file, rejects_file, preset)
        fresh = [row for row in rows if not row["sha256"] or _key(row) not in old_faces.keys() | old_rejects.keys()]
        faces, rejects = collection.align_rows(fresh, workspace.folder_of(shard.dataset), shard.dataset, preset.crop, preset.data, cores())
        for row in rows:
            if (kept := old_faces.get(_key(row))) and row not in fresh:
                faces.append(kept | {k: row[k] for k in ("person", "emotion", "split")})
            elif (kept := old_rejects.get(_key(row))) and row not in fresh:
                rejects.append(kept)
        settings_mark = tables.fingerprint(_alignment_settings(preset)).encode()
        for file, found, schema in ((rejects_file, rejects, tables.REJECTS), (faces_file, faces, tables.FACES)):
            table = tables.from_rows(sorted(found, key=_key), schema).replace_schema_metadata({b"settings": settings_mark})
            tables.write(file, table, mark)
        print(f"{shard.key}: {len(fresh)} photographs looked at, {len(faces)} faces, {len(rejects)} rejected", file=sys.stderr, flush=True)
        return len(fresh)


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["path"], row["sha256"], row["face"]


def _reusable(faces_file: Path, rejects_file: Path, preset: Preset) -> tuple[dict[Any, dict[str, Any]], dict[Any, dict[str, Any]]]:
    """Rows of an earlier run under the same settings, by photograph."""
    settings_mark = tables.fingerprint(_alignment_settings(preset)).encode()
    found: list[dict[Any, dict[str, Any]]] = []
    for file in (faces_file, rejects_file):
        if tables.mark_of(file) is None:
            return {}, {}
        table = tables.read(file)
        if (table.schema.metadata or {}).get(b"settings") != settings_mark:
            return {}, {}
        found.append({_key(row): row for row in table.to_pylist()})
    return found[0], found[1]


@dg.asset(partitions_def=partitions.shards, deps=[aligned_faces], kinds={"parquet"}, group_name="faces")
def face_masks(context: dg.AssetExecutionContext, settings: Settings, workspace: WorkspaceResource) -> dg.MaterializeResult:
    """One row per aligned face: its facial region at crop size."""
    preset, shard = settings.resolve(), Shard.of(context.partition_key)
    covered = mask_shard(workspace.open, shard, preset)
    return dg.MaterializeResult(metadata={"faces": len(covered), **({"mean_share_of_crop": float(np.mean(covered))} if covered else {})})


def mask_shard(workspace: Workspace, shard: Shard, preset: Preset) -> list[float]:
    """Bring a shard's masks up to date; returns the share of its crop that each covers."""
    from diffsfsr.face.masks import hull_mask

    file = workspace.file(f"masks-{preset.crop}", shard)
    mark = tables.fingerprint(aligned_mark(workspace, shard, preset), preset.mask, MASK_VERSION)
    if tables.mark_of(file) != mark:
        faces = tables.read(workspace.file(aligned(preset), shard), ["face_id", "landmarks"]).to_pylist()
        masks = [hull_mask(np.array(row["landmarks"], np.float32).reshape(68, 2), preset.crop) for row in faces]
        rows = [{"face_id": row["face_id"], "mask": np.packbits(mask).tobytes()} for row, mask in zip(faces, masks, strict=True)]
        tables.write(file, tables.from_rows(rows, tables.MASKS), mark)
    return [float(unpack(mask, preset.crop).mean()) for mask in tables.read(file)["mask"].to_pylist()]


def unpack(mask: bytes, size: int) -> np.ndarray:
    """A stored mask as (S, S) uint8 of 0 and 1."""
    return np.unpackbits(np.frombuffer(mask, np.uint8))[: size * size].reshape(size, size)


def _sheet(crops: list[bytes], landmarks: list[list[float]], size: int) -> np.ndarray | None:
    """Aligned faces with their facial region lightened."""
    from diffsfsr.face.images import contact_sheet, decode
    from diffsfsr.face.masks import hull_mask

    shown = []
    for png, points in zip(crops, landmarks, strict=True):
        image = decode(png).astype(np.float32)
        image[hull_mask(np.array(points, np.float32).reshape(68, 2), size) == 1] *= 0.6
        shown.append(image.astype(np.uint8))
    return contact_sheet([shown[i : i + 8] for i in range(0, len(shown), 8)]) if shown else None
