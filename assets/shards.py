"""Training shards: everything a training step reads, computed once."""

import zlib
from typing import Any

import dagster as dg
import numpy as np

from assets import partitions
from assets.embeddings import catalogue, catalogued_mark, each_by_a_core, identity_encoder, load_dln
from assets.faces import face_masks, mask_mark, unpack
from assets.resources import CatalogueResource, Settings, WorkspaceResource
from assets.stores.catalogue import Catalogue
from assets.stores.workspace import Shard, Workspace, aligned
from assets.stores.workspace import training_shards as kind_of
from diffsfsr import tables
from diffsfsr.config import Preset
from diffsfsr.errors import NotReady
from diffsfsr.face.augment import View, views
from diffsfsr.presets import embedded_by
from diffsfsr.training.run import Inputs, RunDirectory
from diffsfsr.weights import SMALL

_PIXELS = 32 * 128**2  # of the faces that a core works on at once, before their views


@dg.asset(partitions_def=partitions.shards, deps=[catalogue, face_masks, "autoencoder"], kinds={"torch", "parquet"}, group_name="model")
def training_shards(
    context: dg.AssetExecutionContext, settings: Settings, workspace: WorkspaceResource, catalogue: CatalogueResource
) -> dg.MaterializeResult:
    """One row per face that training may draw, or per view of it: latents, mask, embeddings, landmarks."""
    preset, shard = settings.resolve(), Shard.of(context.partition_key)
    rows = encode_shard(workspace.open, catalogue.open, shard, preset)
    return dg.MaterializeResult(metadata={"rows": rows}, data_version=dg.DataVersion(shard_mark(workspace.open, shard, preset)))


def shard_kind(workspace: Workspace, preset: Preset) -> str:
    versions = [workspace.need_network(kind, preset)[1] for kind in ("autoencoder", "dln")]
    return kind_of(preset.crop, (*embedded_by(preset), *preset.data.augment), *versions)


SHARD_VERSION = 3  # goes up with every change of what a face becomes here: views_of, and diffsfsr.face.augment


def shard_mark(workspace: Workspace, shard: Shard, preset: Preset) -> str:
    """What a training shard is made from."""
    made_from = catalogued_mark(workspace, shard, preset), mask_mark(workspace, shard, preset)
    return tables.fingerprint(SHARD_VERSION, *made_from, shard_kind(workspace, preset))


def is_encoded(workspace: Workspace, shard: Shard, preset: Preset) -> bool:
    return tables.mark_of(workspace.file(shard_kind(workspace, preset), shard)) == shard_mark(workspace, shard, preset)


def current_shards(workspace: Workspace, preset: Preset) -> Inputs:
    """Every training shard of the preset's current networks. Raises NotReady where one is missing."""
    kind = shard_kind(workspace, preset)
    shards, start = workspace.learned(preset), workspace.start(preset)
    files = [workspace.file(kind, shard) for shard in shards]
    lacking = [shard.key for shard, file in zip(shards, files, strict=True) if not file.exists()]
    if lacking or not files:
        where = ", ".join(lacking) or "every data set"
        raise NotReady(f"training shards are missing for {where}; run `diffsfsr run train --preset {preset.name}`")
    version = tables.fingerprint([tables.mark_of(file) for file in files])
    autoencoder, dln = (str(workspace.need_network(kind, preset)[0]) for kind in ("autoencoder", "dln"))
    decoder = _decoder(workspace, preset, autoencoder) if preset.objective.loss_decoder == SMALL else ""
    crops = tuple(str(workspace.file(aligned(preset), shard)) for shard in shards)
    return Inputs(tuple(map(str, files)), version, autoencoder, dln, str(start.folder) if start else "", decoder=decoder, crops=crops)


def _decoder(workspace: Workspace, preset: Preset, autoencoder: str) -> str:
    """The folder of the small decoder. Raises NotReady where there is none, or it was trained for another autoencoder's latents."""
    folder, _ = workspace.need_network("decoder", preset)
    if RunDirectory(folder.parent).inputs.autoencoder != autoencoder:
        raise NotReady(f"the loss decoder in {folder} reads another autoencoder's latents; run `diffsfsr run train --preset {preset.name}`")
    return str(folder)


def encode_shard(workspace: Workspace, catalogue: Catalogue, shard: Shard, preset: Preset) -> int:
    """Bring one training shard up to date; returns its number of rows."""
    import torch

    from diffsfsr.model.autoencoder import LatentAutoencoder

    file, mark = workspace.file(shard_kind(workspace, preset), shard), shard_mark(workspace, shard, preset)
    if tables.mark_of(file) == mark:
        return tables.read(file, ["face_id"]).num_rows
    faces = tables.read(workspace.file(aligned(preset), shard))
    masks = dict(zip(*tables.read(workspace.file(f"masks-{preset.crop}", shard)).to_pydict().values(), strict=True))
    autoencoder = LatentAutoencoder.from_pretrained(workspace.need_network("autoencoder", preset)[0]).eval()
    autoencoder.to(memory_format=torch.channels_last)
    dln = load_dln(workspace, preset)
    embeddings, widths = _embeddings(catalogue, faces["face_id"].to_pylist(), shard, preset)
    size = max(1, _PIXELS // preset.crop**2)
    batches = (faces.slice(start, size).to_pylist() for start in range(0, len(faces), size))
    made = each_by_a_core(lambda part: views_of(part, masks, preset, autoencoder, dln), batches)
    rows = [embeddings[row["face_id"]] | row for part in made for row in part]
    schema = tables.training_schema(preset.autoencoder.channels, preset.latent, widths, preset.dln.dim)
    tables.write(file, tables.from_rows(rows, schema), mark)
    return len(rows)


def _embeddings(catalogue: Catalogue, ids: list[str], shard: Shard, preset: Preset) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """face_id -> its embedding columns, and the width of each identity encoder."""
    names = [f"id_{name}" for name in embedded_by(preset)]
    widths = {name: identity_encoder(name).dim for name in embedded_by(preset)}
    table = catalogue.faces(["face_id", *names, "expression"], shard=shard.key)
    found = {row.pop("face_id"): row for row in table.to_pylist()}
    lacking = [i for i in ids if i not in found or found[i]["expression"] is None]
    if lacking:
        what = f"{len(lacking)} faces of shard {shard.key} lack embeddings, first {lacking[0]}"
        raise NotReady(f"{what}; materialize expression_embeddings and catalogue")
    return found, widths


def views_of(faces: list[dict[str, Any]], masks: dict[str, bytes], preset: Preset, autoencoder: Any, dln: Any) -> list[dict[str, Any]]:
    """A row per view of some faces, without the embeddings of the face itself; every further view has an expression of its own: a mirrored
    face winks with the other eye."""
    part = [(face, *each) for face in faces for each in enumerate(_views(face, masks, preset))]
    others = [view for _, number, view in part if number]
    shown, rows = iter(_expressions(dln, others) if others else ()), []
    for (face, number, view), encoded in zip(part, _encode(autoencoder, [view for *_, view in part]), strict=True):
        labels = {k: face[k] for k in ("face_id", "person", "emotion", "split")} | {"landmarks": view.landmarks.reshape(-1)}
        rows.append(labels | encoded | ({"expression": next(shown)} if number else {}))
    return rows


def _views(face: dict[str, Any], masks: dict[str, bytes], preset: Preset) -> list[View]:
    """A face of the training split as data.augment asks for it, always the same ways; one that is held out as it is."""
    from diffsfsr.face.images import decode

    landmarks = np.array(face["landmarks"], np.float32).reshape(68, 2)
    whole = View(decode(face["crop"]), unpack(masks[face["face_id"]], preset.crop), landmarks)
    if face["split"] != "train":
        return [whole]
    return views(whole, preset.data.augment, np.random.default_rng(zlib.crc32(face["face_id"].encode())))


def _expressions(dln: Any, faces: list[View]) -> np.ndarray:
    """(n, 16) embeddings of some faces as they look."""
    import torch

    from diffsfsr.face.images import to_tensor

    images, landmarks = to_tensor(np.stack([face.crop for face in faces])), torch.from_numpy(np.stack([face.landmarks for face in faces]))
    with torch.inference_mode():
        return dln(images, landmarks).numpy()


def _encode(autoencoder: Any, faces: list[View]) -> list[dict[str, Any]]:
    """latent, masked_latent (C * h * h float16) and mask (h * h bytes) of some faces."""
    import torch

    from diffsfsr.face.images import to_tensor
    from diffsfsr.face.masks import latent_mask
    from diffsfsr.model.autoencoder import condition_image
    from diffsfsr.precision import autocast

    images = to_tensor(np.stack([face.crop for face in faces]))
    mask = torch.from_numpy(np.stack([face.mask for face in faces])[:, None]).float()
    # In bf16 off by .004 of a latent's standard deviation, a fiftieth of what the autoencoder itself loses.
    with torch.inference_mode(), autocast("bf16", "cpu"):
        latents = autoencoder.encode(torch.cat([images, condition_image(images, mask)])).half().numpy()
    small = latent_mask(mask).to(torch.uint8).numpy()
    whole, masked = latents[: len(faces)], latents[len(faces) :]
    return [{"latent": whole[i].reshape(-1), "masked_latent": masked[i].reshape(-1), "mask": small[i].tobytes()} for i in range(len(faces))]
