"""Whether the faces in requests are still like those that the champion learned from."""

import json
from typing import Any

import dagster as dg
import numpy as np

from assets.portraits import portraits
from assets.resources import CatalogueResource, RegistryResource, WorkspaceResource
from assets.stores.catalogue import Catalogue
from assets.stores.registry import ModelVersion
from assets.stores.served import Served
from diffsfsr.errors import NotReady

_MOST = 500  # of the newest requests
_TRAINING = 1000  # faces of the training catalogue that they are compared with, drawn by a fixed seed


@dg.asset_check(asset=portraits)
def requests_like_training(workspace: WorkspaceResource, catalogue: CatalogueResource, registry: RegistryResource) -> dg.AssetCheckResult:
    """Embeddings of the recent requests' faces against the training catalogue's: a warning where they differ by more than chance would."""
    try:
        champion = registry.open.resolve("champion")
    except NotReady as error:
        return dg.AssetCheckResult(passed=True, metadata={"requests": str(error)})
    served = Served(workspace.open.home / "served")
    served.prune()
    found = compare(served, catalogue.open, champion)
    drifted = [row["embedding"] for row in found if row["drift"]]
    return dg.AssetCheckResult(
        passed=not drifted,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"requests differ from the training faces in {', '.join(drifted)}" if drifted else "",
        metadata={"comparison": dg.MetadataValue.md(_table(found))},
    )


def compare(served: Served, catalogue: Catalogue, champion: ModelVersion) -> list[dict[str, Any]]:
    """One row per embedding of the champion's requests: how many of them, share, p, and whether that is a drift."""
    from diffsfsr.evaluation import drift

    rows = []
    for name, recent in sorted(served.recent(str(champion.version), _MOST).items()):
        training, row = _training(catalogue, champion, name, recent.shape[1]), {"embedding": name, "requests": len(recent), "drift": False}
        if min(len(recent), len(training)) >= drift.LEAST:
            gap = drift.compare(recent, training)
            row |= {"share": gap.share, "p": gap.p, "drift": gap.warns}
        rows.append(row | {"training": len(training)})
    return rows


def _training(catalogue: Catalogue, champion: ModelVersion, name: str, width: int) -> np.ndarray:
    """(n, D) embeddings of faces that the champion may have learned from; of expressions, those by its own DLN."""
    dln = json.loads((champion.folder / "dln" / "dln.json").read_text(encoding="utf-8"))["version"]
    same = {"expression_version": dln} if name == "expression" else {}
    table = catalogue.faces([name], split="train", **same)
    vectors = np.array([v for v in table[name].to_pylist() if v is not None], np.float32).reshape(-1, width)
    return vectors[np.random.default_rng(0).permutation(len(vectors))[:_TRAINING]]


def _table(rows: list[dict[str, Any]]) -> str:
    from diffsfsr.evaluation import drift

    rule = (
        "Energy distance between requests and training faces, as a share of the distance between them, beyond chance. A warning stands "
        f"where the share is {drift.SHARE:g} or more and a permutation test gives p of {drift.ALPHA:g} or less; "
        f"of fewer than {drift.LEAST} requests nothing is said."
    )
    lines = ["| embedding | requests | training faces | share | p | |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        measured = f"{row['share']:.3f} | {row['p']:.3f} | {'DRIFT' if row['drift'] else ''}" if "p" in row else "- | - | too few"
        lines.append(f"| {row['embedding']} | {row['requests']} | {row['training']} | {measured} |")
    return "\n".join([*lines, "", rule])
