"""Where the stores are, read from the environment in one place."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsfsr.errors import InputError

if TYPE_CHECKING:
    import dagster as dg

_INSTANCE = Path(__file__).with_name("dagster.yaml")


@dataclass(frozen=True)
class Environment:
    """The state folder and the addresses of the stores; each store may lie elsewhere by a variable of its own."""

    home: Path
    catalogue: str
    queue: str
    mlflow: str
    artifacts: str

    @classmethod
    def current(cls, usable: bool = True) -> Environment:
        """Raises InputError where no state folder can have that name; with `usable`, also where a file has it."""
        named = Path(os.environ.get("DIFFSFSR_HOME") or ".diffsfsr")
        try:
            home = named.resolve()
        except RuntimeError as error:
            raise InputError(f"the state folder {named} is a link that leads nowhere: set DIFFSFSR_HOME") from error
        if usable and os.path.lexists(home) and not home.is_dir():
            raise InputError(f"the state folder {home} is a file: set DIFFSFSR_HOME to a folder")
        if set("?#%") & set(str(home)):
            raise InputError(
                f"the state folder {home} has a ?, # or % in its path, which database addresses cannot hold: set DIFFSFSR_HOME"
            )
        return cls(
            home=home,
            catalogue=os.environ.get("DIFFSFSR_CATALOGUE_URI") or str(home / "catalogue"),
            queue=os.environ.get("DIFFSFSR_QUEUE_URL") or f"sqlite:///{home / 'queue.db'}",
            mlflow=os.environ.get("DIFFSFSR_MLFLOW_URI") or f"sqlite:///{home / 'mlflow.db'}",
            artifacts=os.environ.get("DIFFSFSR_ARTIFACTS") or str(home / "mlartifacts"),
        )

    def resources(self) -> dict[str, Any]:
        """The Dagster resources of every asset."""
        import dagster as dg

        from assets import resources as r

        return {
            "settings": r.Settings.configure_at_launch(),
            "workspace": r.WorkspaceResource(home=str(self.home), catalogue=self.catalogue),
            "catalogue": r.CatalogueResource(uri=self.catalogue),
            "queue": r.QueueResource(url=self.queue),
            "registry": r.RegistryResource(tracking_uri=self.mlflow, artifact_root=self.artifacts),
            "trainer": dg.PipesSubprocessClient(),
        }

    def prepare(self) -> None:
        """Make the state folder and Dagster's own inside it, and point Dagster and its telemetry at them."""
        folder = self.home / "dagster"
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "dagster.yaml").exists():
            shutil.copyfile(_INSTANCE, folder / "dagster.yaml")
        os.environ["DIFFSFSR_HOME"] = str(self.home)
        os.environ.setdefault("DAGSTER_HOME", str(folder))
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

    def instance(self) -> dg.DagsterInstance:
        """Dagster's instance, whose event log the UI shows. Its databases are there when it is returned: two commands that are the first in
        a state folder would else both make them, and one would fail."""
        import dagster as dg
        from filelock import FileLock

        self.prepare()
        with FileLock(self.home / "dagster" / ".lock"):
            try:
                found = dg.DagsterInstance.get()
                _ = found.run_storage, found.event_log_storage, found.schedule_storage
            except Exception as error:
                if "not a database" not in str(error) and "malformed" not in str(error):
                    raise
                raise InputError(
                    f"{self.home / 'dagster'} holds a damaged database: move the folder away; the runs' history begins anew"
                ) from error
        return found
