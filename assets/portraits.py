"""From queued requests to portraits."""

import dataclasses
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np

from assets.pictures import picture
from assets.registry import champion
from assets.resources import CatalogueResource, QueueResource, RegistryResource, WorkspaceResource
from assets.stores.catalogue import Catalogue
from assets.stores.queue import Queue, Request
from diffsfsr.emotions import choose_reference, resolve
from diffsfsr.errors import InputError, NotReady
from diffsfsr.portrait.order import Order

_LEASE_SECONDS = 120.0  # after which the requests of a holder that died are taken again

BATCH = 8


class Batch(dg.Config):
    """How many queued requests one run takes."""

    size: int = BATCH


@dataclasses.dataclass(frozen=True)
class Serving:
    """A loaded model and what tells its versions apart."""

    studio: Any
    version: str
    catalogue: Catalogue
    folder: Path

    @classmethod
    def champion(cls, registry: Any, catalogue: Catalogue, folder: Path) -> "Serving":
        """The version behind the alias now; it is resolved once, so that a whole batch is made by one version."""
        from diffsfsr.portrait.compose import Studio

        found = registry.resolve("champion")
        return cls(Studio(found.folder), str(found.version), catalogue, folder)

    def expression(self, word: str, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        """The (16,) reference embedding that stands for a word, and how it was found."""
        version = self.studio.dln.version
        resolution = resolve(word, {k: n for k, n in self.catalogue.labels(version=version).items() if k})
        found = [self.catalogue.by_label(label, version=version) for label in resolution.labels]
        ids, vectors = [i for part, _ in found for i in part], np.concatenate([v for _, v in found])
        chosen = choose_reference(vectors, seed=seed)
        facts = {"word": word, "labels": list(resolution.labels), "how": resolution.how, "reference": ids[chosen], "among": len(ids)}
        return vectors[chosen], facts


@dg.asset(deps=[champion], kinds={"torch"}, group_name="service", pool="gpu")
def portraits(
    context: dg.AssetExecutionContext,
    config: Batch,
    workspace: WorkspaceResource,
    catalogue: CatalogueResource,
    queue: QueueResource,
    registry: RegistryResource,
) -> dg.MaterializeResult:
    """One portrait per leased request, with its sidecar; every request of the batch ends as done or failed."""
    outcomes, shown = {"done": 0, "failed": 0, "retried": 0, "lost": 0}, []
    if not queue.open.waiting(1):
        return dg.MaterializeResult(metadata=outcomes)
    serving = Serving.champion(registry.open, catalogue.open, workspace.open.home / "portraits")
    batch = queue.open.lease(config.size, owner=context.run_id, seconds=_LEASE_SECONDS)
    with _holding(batch, queue.open, context.run_id):
        for request in batch:
            outcome, image = _serve(request, serving, queue.open, context)
            outcomes[outcome] += 1
            shown += [image] if image is not None else []
    return dg.MaterializeResult(metadata={**outcomes, **({"portraits": picture(_sheet(shown))} if shown else {})})


@contextmanager
def _holding(batch: list[Request], queue: Queue, owner: str) -> Iterator[None]:
    """Renews the leases of a batch for as long as this process lives and works on it, however slow the model is."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(_LEASE_SECONDS / 4):
            for request in batch:
                queue.renew(request.id, owner, _LEASE_SECONDS)  # not those that have ended

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _serve(request: Request, serving: Serving, queue: Queue, context: dg.AssetExecutionContext) -> tuple[str, np.ndarray | None]:
    """Bring one leased request to its end, unless the lease was lost on the way: ('done' | 'failed' | 'retried' | 'lost', the picture)."""
    owner = context.run_id
    if not queue.renew(request.id, owner, _LEASE_SECONDS):
        return "lost", None
    try:
        sidecar, image = fulfil(Order.from_payload(request.payload), serving)
    except (InputError, NotReady) as error:
        context.log.warning(f"request {request.id}: {error}")
        return ("failed" if queue.fail(request.id, owner, str(error)) else "lost"), None
    except Exception as error:  # one broken request must not keep the others waiting
        context.log.exception(f"request {request.id}")
        if not queue.fail(request.id, owner, f"{type(error).__name__}: {error}", retry=True):
            return "lost", None
        return ("failed" if queue.get(request.id).state == "failed" else "retried"), None
    result = {"portrait": sidecar["portrait"], "model_version": sidecar["model_version"], "seconds": sidecar["timings_seconds"]["total"]}
    return ("done" if queue.complete(request.id, owner, result) else "lost"), image


def fulfil(order: Order, serving: Serving, out: Path | None = None) -> tuple[dict[str, Any], np.ndarray]:
    """Make and write one portrait; returns its sidecar and the picture.

    Its name is a hash of everything it is made from, so that making it twice writes the same file. `out` puts it elsewhere.
    Raises InputError for an order that cannot be fulfilled.
    """
    from diffsfsr.face.images import Rejected, read, write_image
    from diffsfsr.portrait import provenance, scenes

    started = time.perf_counter()
    order = order.check()
    inputs = order.inputs()
    expression, resolution = serving.expression(order.emotion, order.seed) if order.task != "identity" else (None, None)
    photographs = {}
    for given in inputs:
        try:
            photographs[given] = read(Path(given))
        except Rejected as rejected:
            raise InputError(f"{given} cannot be used: {rejected.reason} ({rejected.detail}); give another photograph") from rejected
    scene = photographs[order.scene] if order.scene else scenes.from_prompt(order.prompt, order.seed)
    selfies = [serving.studio.face(photographs[given], f"selfie {given}") for given in order.selfies]
    made = serving.studio.compose(
        selfies,
        scene,
        expression,
        task=order.task,
        strength=order.strength,
        steps=order.steps,
        sampler=order.sampler,
        seed=order.seed,
        face=order.face,
    )
    name = order.name(inputs, serving.version, b"" if expression is None else np.float32(expression).tobytes())
    path = out or serving.folder / f"{name}.png"
    write_image(path, made.image)
    sidecar = provenance.sidecar(path, order, inputs, resolution, serving.version, serving.studio, made, time.perf_counter() - started)
    provenance.write(path, sidecar)
    return sidecar, made.image


def _sheet(images: list[np.ndarray]) -> np.ndarray:
    from diffsfsr.face.images import contact_sheet

    return contact_sheet([images[i : i + 4] for i in range(0, len(images), 4)], cell=160)
