"""The networks a preset needs before its diffusion model: imported where their weights are published, else trained here."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg

from assets.faces import aligned_faces, aligned_mark
from assets.pictures import curve
from assets.resources import RegistryResource, Settings, WorkspaceResource
from assets.stores.registry import content_hash
from assets.stores.workspace import Shard, Workspace, aligned, family
from assets.supervision import TEACHER, annotation_files, expression_teacher, teacher_file
from assets.training import final, run_training
from diffsfsr import presets, tables
from diffsfsr.config import Preset
from diffsfsr.errors import NotReady
from diffsfsr.training.run import Inputs
from diffsfsr.training.triplets import NO_ANNOTATIONS
from diffsfsr.weights import SMALL


def crops_of(workspace: Workspace, preset: Preset) -> Inputs:
    """Every prepared shard's aligned faces as the input of a training from pixels."""
    ready = prepared_shards(workspace, preset)
    version = tables.fingerprint([(shard.key, aligned_mark(workspace, shard, preset)) for shard in ready])
    return Inputs(shards=tuple(str(workspace.file(aligned(preset), shard)) for shard in ready), data_version=version)


def prepared_shards(workspace: Workspace, preset: Preset) -> list[Shard]:
    ready = workspace.learned(preset)
    if not ready:
        raise NotReady(f"no aligned faces of {preset.crop} pixels yet; run `diffsfsr run prepare --data DIR --preset {preset.name}`")
    return ready


def supervision_of(workspace: Workspace, preset: Preset) -> Inputs:
    """The crops, and whatever `dln.triplets` asks for besides labels."""
    basis = crops_of(workspace, preset)
    teacher: list[Path] = []
    if TEACHER in preset.dln.triplets:
        teacher = [teacher_file(workspace, shard, preset) for shard in prepared_shards(workspace, preset)]
        if lacking := [file for file in teacher if not file.exists()]:
            raise NotReady(f"{lacking[0]} is missing: materialize expression_teacher, or run `diffsfsr run train --preset {preset.name}`")
    annotated = annotation_files(workspace, preset) if "annotations" in preset.dln.triplets else []
    if "annotations" in preset.dln.triplets and not annotated:
        raise NotReady(f"dln.triplets={list(preset.dln.triplets)}: {NO_ANNOTATIONS}")
    version = tables.fingerprint(basis.data_version, [tables.mark_of(file) for file in (*teacher, *annotated)])
    return replace(basis, data_version=version, teacher=tuple(map(str, teacher)), triplets=tuple(map(str, annotated)))


@dg.asset(deps=[aligned_faces], kinds={"torch", "deepspeed"}, group_name="experts", pool="gpu")
def autoencoder(
    context: dg.AssetExecutionContext,
    settings: Settings,
    workspace: WorkspaceResource,
    registry: RegistryResource,
    trainer: dg.PipesSubprocessClient,
) -> dg.MaterializeResult:
    """One network: pixels to latents and back."""
    preset = settings.resolve("autoencoder")
    if start := workspace.open.start(preset):
        return _taken(workspace.open, preset, "autoencoder", start.folder / "vae", content_hash(start.folder / "vae"))
    if preset.autoencoder.source:
        return _imported(workspace.open, preset, "autoencoder", preset.autoencoder.source)
    return _trained(context, trainer, workspace.open, registry.open, preset, crops_of(workspace.open, preset))


@dg.asset(deps=[aligned_faces, expression_teacher], kinds={"torch", "deepspeed"}, group_name="experts", pool="gpu")
def dln_model(
    context: dg.AssetExecutionContext,
    settings: Settings,
    workspace: WorkspaceResource,
    registry: RegistryResource,
    trainer: dg.PipesSubprocessClient,
) -> dg.MaterializeResult:
    """One network: the expression encoder."""
    from diffsfsr.encoders.dln import Dln

    preset = settings.resolve("dln")
    if start := workspace.open.start(preset):
        return _taken(workspace.open, preset, "dln", start.folder / "dln", Dln.load(start.folder / "dln").version)
    if preset.dln.source:
        return _imported(workspace.open, preset, "dln", preset.dln.source)
    run, lines = run_training(context, trainer, workspace.open, registry.open, preset, supervision_of(workspace.open, preset))
    version = Dln.load(run.model).version
    workspace.open.set_network("dln", preset, run.model, version)
    return dg.MaterializeResult(
        metadata={"run": run.path.name, "steps": preset.training.steps, "curve": curve(lines, ("loss", "accuracy"))},
        data_version=dg.DataVersion(version),
    )


@dg.asset(deps=[aligned_faces, autoencoder], kinds={"torch", "deepspeed"}, group_name="experts", pool="gpu")
def loss_decoder(
    context: dg.AssetExecutionContext,
    settings: Settings,
    workspace: WorkspaceResource,
    registry: RegistryResource,
    trainer: dg.PipesSubprocessClient,
) -> dg.MaterializeResult:
    """One network: the small decoder that the identity and expression losses look through; none where the preset does not ask for it."""
    asked = settings.resolve().objective.loss_decoder
    if asked != SMALL and presets.preset(settings.preset).trains != "decoder":
        return dg.MaterializeResult(metadata={"why": f"objective.loss_decoder={asked!r} asks for none that is trained here"})
    preset = settings.resolve("decoder")
    inputs = replace(crops_of(workspace.open, preset), autoencoder=str(workspace.open.need_network("autoencoder", preset)[0]))
    return _trained(context, trainer, workspace.open, registry.open, preset, inputs)


def _trained(context: Any, trainer: Any, workspace: Workspace, registry: Any, preset: Preset, inputs: Inputs) -> dg.MaterializeResult:
    """Train what is judged by its pictures, the autoencoder or the loss decoder, and make it the preset's current one."""
    run, lines = run_training(context, trainer, workspace, registry, preset, inputs)
    version = tables.fingerprint(run.path.name)
    workspace.set_network(preset.trains, preset, run.model, version)
    return dg.MaterializeResult(
        metadata={"run": run.path.name, "steps": preset.training.steps, **final(lines, psnr_db="psnr"), "curve": curve(lines, ("mae",))},
        data_version=dg.DataVersion(version),
    )


def _taken(workspace: Workspace, preset: Preset, kind: str, folder: Path, version: str) -> dg.MaterializeResult:
    """A network of the model that the preset trains on from."""
    workspace.set_network(kind, preset, folder, version)
    return dg.MaterializeResult(metadata={"folder": dg.MetadataValue.path(str(folder))}, data_version=dg.DataVersion(version))


def _imported(workspace: Workspace, preset: Preset, kind: str, source: str) -> dg.MaterializeResult:
    """Published weights, found in the zoo and saved as this project's own class. NotReady names the command that brings them."""
    from diffsfsr.encoders.dln import Dln
    from diffsfsr.model.autoencoder import LatentAutoencoder
    from diffsfsr.training.checkpoints import replace_folder
    from diffsfsr.weights import file_sha256, resolve

    path = resolve(source)
    version = file_sha256(path)
    folder = workspace.home / "models" / family(preset) / f"{kind}-{version[:8]}"
    if not folder.is_dir():
        load: Any = {
            "autoencoder": lambda: LatentAutoencoder.from_config_row(preset.autoencoder, path.parent),
            "dln": lambda: Dln.load(path.parent),
        }[kind]
        save = "save_pretrained" if kind == "autoencoder" else "save"
        replace_folder(folder, lambda part: getattr(load(), save)(part))
    workspace.set_network(kind, preset, folder, version)
    return dg.MaterializeResult(
        metadata={"source": source, "folder": dg.MetadataValue.path(str(folder))}, data_version=dg.DataVersion(version)
    )
