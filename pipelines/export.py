"""`diffsfsr export`: a trained model as a folder that stands alone, as the one that comes with the package is made."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from diffsfsr.errors import InputError
from pipelines.environments import Environment


def export(args: Namespace) -> Any:
    """Writes the folder; answers with what is in it."""
    from assets.evaluation import model_folder
    from assets.shipping import export as write
    from assets.stores.registry import Registry
    from assets.stores.workspace import Workspace
    from diffsfsr import presets
    from diffsfsr.portrait import shipped
    from pipelines.judge import check_model

    check_model(args.model)
    preset, here = presets.preset(args.preset), Environment.current()
    out = Path(args.out).absolute() if args.out else shipped.PLACE
    shipped.check_place(out)
    notes = _text(args.notes) if args.notes else ""
    workspace = Workspace(here.home, here.catalogue)
    folder, _ = model_folder(workspace, Registry(here.mlflow, here.artifacts), preset, args.model)
    return write(workspace, folder, out, notes)


def _text(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"--notes {name} cannot be read as text: give a Markdown file") from error
