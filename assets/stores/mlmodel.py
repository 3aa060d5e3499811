"""What makes a stored model one that MLflow's own client loads: its MLmodel file, signature, requirements and an example."""

from __future__ import annotations

from pathlib import Path

import diffsfsr
from diffsfsr.portrait import pyfunc


def describe(folder: Path) -> None:
    """Write those files into a new folder. No weights are among them: MLmodel names them by their place beside it."""
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types import ColSpec, Schema

    inputs = Schema([ColSpec(kind, name, required=needed) for name, (kind, needed) in pyfunc.COLUMNS.items()])
    outputs = Schema([ColSpec("binary", "portrait"), ColSpec("string", "expression")])
    save_model(
        folder,
        loader_module=pyfunc.__name__,
        signature=ModelSignature(inputs, outputs),
        input_example=pyfunc.EXAMPLE,
        pip_requirements=[f"diffsfsr=={diffsfsr.__version__}"],
    )
