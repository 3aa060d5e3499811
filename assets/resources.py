"""The stores as Dagster resources, and the one setting of a run: its preset."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from diffsfsr import config
from diffsfsr.config import Preset
from diffsfsr.presets import PRESETS, TUNED, preset
from diffsfsr.weights import check_names, refuse_non_commercial, without_absent_teachers

if TYPE_CHECKING:
    from assets.stores.catalogue import Catalogue
    from assets.stores.queue import Queue
    from assets.stores.registry import Registry
    from assets.stores.workspace import Workspace

_PREFIX = {"diffusion": "", "finish": "", "autoencoder": "ae-", "dln": "dln-", "decoder": "decoder-"}
# What a network is made from besides its own `training`: a change elsewhere leaves it, and its finished run, as they are.
_MADE_FROM = {
    "diffusion": tuple(f.name for f in dataclasses.fields(Preset) if f.name != "training"),
    "autoencoder": ("crop", "mask", "commercial_only", "data", "autoencoder"),
    "dln": ("crop", "mask", "commercial_only", "data", "dln"),
    "decoder": ("crop", "mask", "commercial_only", "data", "autoencoder"),
}


class Settings(dg.ConfigurableResource):
    """Which preset this run uses, with changes: {"training.steps": "100"}."""

    preset: str = "starter"
    changes: dict[str, str] = {}

    def resolve(self, trains: str = "diffusion") -> Preset:
        """The preset for training that network. The one that was named takes every change, another of its family those of what it
        is made from, so that the networks fit together. A model that is tuned goes without the recognisers of L_id that this machine
        lacks, while one that is trained from nothing is not made another by that. Raises InputError."""
        named = preset(self.preset)
        family = self.preset.removeprefix(_PREFIX[named.trains])
        if trains != "diffusion":
            family = named.experts or family
        row = PRESETS.get(_PREFIX[trains] + family) or _without_a_row(preset(family), trains)
        own = row.trains == named.trains
        changes = {k: v for k, v in self.changes.items() if own or k.partition(".")[0] in _MADE_FROM[trains]}
        resolved = config.override(row, changes)
        check_names(resolved)
        refuse_non_commercial(resolved)
        return without_absent_teachers(resolved) if family in TUNED else resolved


def _without_a_row(family: Preset, trains: str) -> Preset:
    """For a network that is imported, or that nobody has found a training for: the model's own, without its validation pictures."""
    training = dataclasses.replace(family.training, validate_every=0)
    return dataclasses.replace(family, trains=trains, training=training)  # type: ignore[arg-type]


class WorkspaceResource(dg.ConfigurableResource):
    """The folder that all state lies in (DIFFSFSR_HOME), and where the catalogue is that may lie elsewhere."""

    home: str
    catalogue: str = ""

    @cached_property
    def open(self) -> Workspace:
        from assets.stores.workspace import Workspace

        return Workspace(Path(self.home), self.catalogue)


class CatalogueResource(dg.ConfigurableResource):
    """LanceDB, at a folder or a URL."""

    uri: str

    @cached_property
    def open(self) -> Catalogue:
        from assets.stores.catalogue import Catalogue

        return Catalogue(self.uri)


class QueueResource(dg.ConfigurableResource):
    """The request queue, an SQL database by URL."""

    url: str

    @cached_property
    def open(self) -> Queue:
        from assets.stores.queue import Queue

        return Queue(self.url)


class RegistryResource(dg.ConfigurableResource):
    """MLflow's tracking and model registry."""

    tracking_uri: str
    artifact_root: str

    @cached_property
    def open(self) -> Registry:
        from assets.stores.registry import Registry

        return Registry(self.tracking_uri, self.artifact_root)
