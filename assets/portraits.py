"""From queued requests to portraits."""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
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
from assets.stores.registry import content_hash
from assets.stores.served import Served
from diffsfsr.errors import InputError, NotReady
from diffsfsr.portrait import shipped
from diffsfsr.portrait.order import Order
from diffsfsr.portrait.sitting import sit
from diffsfsr.portrait.words import WORD_TABLE, Found, WordTable, beside, reference, vocabulary

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
    catalogue: Catalogue | None
    folder: Path
    served: Served | None = None  # where embeddings of requests are kept for the drift check
    words: WordTable | None = None  # the model's own, for labels that the catalogue has too few faces of

    @classmethod
    def champion(cls, registry: Any, catalogue: Callable[[], Catalogue], folder: Path) -> "Serving":
        """The version behind the alias now, or the model that comes with the package where there is none; it is resolved once, so that
        a whole batch is made by one version. Raises NotReady where there is neither."""
        from diffsfsr.portrait.compose import Studio

        try:
            found = registry.resolve("champion")
        except NotReady as error:
            if registry.champion is not None:
                raise
            if (model := shipped.folder()) is None:
                raise NotReady(f"{error}; {shipped.missing()}") from error
            return cls.shipped(model, folder)
        served = Served(folder.parent / "served")
        return cls(Studio(found.folder), str(found.version), catalogue(), folder, served, beside(found.folder))

    @classmethod
    def shipped(cls, model: Path, folder: Path) -> "Serving":
        """A model that stands alone, with its own words and no store. Raises InputError where it brings no words."""
        from diffsfsr.portrait.compose import Studio

        words = beside(model)
        if not words or not words.labels:
            do = "install the package again, or name a folder of `diffsfsr export`"
            raise InputError(f"{model / WORD_TABLE}, by which words are looked up, is missing or empty: {do}")
        return cls(Studio(model), shipped_version(model), None, folder, words=words)

    def expression(self, word: str, seed: int) -> Found:
        """What stands for a word."""
        at_hand = self.catalogue.vocabulary(self.studio.dln.version) if self.catalogue else None
        return reference(word, seed, *vocabulary(self.words, at_hand))


def shipped_version(model: Path) -> str:
    """What portraits call the model that comes with the package: other files, another version."""
    return f"{shipped.NAME}-{content_hash(model)[:8]}"


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
    serving = Serving.champion(registry.open, lambda: catalogue.open, workspace.open.home / "portraits")
    batch = queue.open.lease(config.size, owner=context.run_id, seconds=_LEASE_SECONDS)
    with _holding(batch, queue.open, context.run_id):
        for outcome, image in _serve(batch, serving, queue.open, context):
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


Outcome = tuple[str, np.ndarray | None]  # 'done' | 'failed' | 'retried' | 'lost', and the picture


def _serve(batch: list[Request], serving: Serving, queue: Queue, context: dg.AssetExecutionContext) -> Iterator[Outcome]:
    """Bring leased requests to their ends, unless a lease is lost on the way: each is begun, all are painted together, each is finished."""
    owner = context.run_id
    ready: list[tuple[Request, Commission]] = []
    for request in batch:
        if not queue.renew(request.id, owner, _LEASE_SECONDS):
            yield "lost", None
            continue
        try:
            ready.append((request, begin(Order.from_payload(request.payload), serving)))
        except Exception as error:  # one broken request must not keep the others waiting
            yield _failed(request, error, queue, context), None
    for (request, commission), made in zip(ready, _painted([c.sitting for _, c in ready], serving), strict=True):
        try:
            if isinstance(made, Exception):
                raise made
            sidecar = finish(commission, made, serving)
        except Exception as error:
            yield _failed(request, error, queue, context), None
            continue
        result = {name: sidecar[name] for name in ("portrait", "model_version")} | {"seconds": sidecar["timings_seconds"]["total"]}
        yield ("done", made.image) if queue.complete(request.id, owner, result) else ("lost", None)


def _painted(sittings: list[Any], serving: Serving) -> list[Any]:
    """Each sitting's portrait, or its exception: where painting together fails each is painted alone, so that it is the fault of one."""
    try:
        return serving.studio.paint(sittings)
    except Exception as error:
        return [error] if len(sittings) == 1 else [made for sitting in sittings for made in _painted([sitting], serving)]


def _failed(request: Request, error: Exception, queue: Queue, context: dg.AssetExecutionContext) -> str:
    """How a request ends that met an error: a wrong order has failed, our own fault is tried again for a while."""
    if isinstance(error, InputError | NotReady):
        context.log.warning(f"request {request.id}: {error}")
        return "failed" if queue.fail(request.id, context.run_id, str(error)) else "lost"
    context.log.error(f"request {request.id}", exc_info=error)
    if not queue.fail(request.id, context.run_id, f"{type(error).__name__}: {error}", retry=True):
        return "lost"
    return "failed" if queue.get(request.id).state == "failed" else "retried"


@dataclasses.dataclass(frozen=True)
class Commission:
    """An order that wants only painting."""

    order: Order
    inputs: dict[str, str]  # file -> sha256
    sitting: Any
    found: Found | None  # what stands for the word
    seconds: float  # that it took so far


def begin(order: Order, serving: Serving) -> Commission:
    """Reads what an order names and finds the faces. Raises InputError for an order that cannot be fulfilled."""
    started = time.perf_counter()
    order = order.check()
    inputs = order.inputs()
    sitting, found = sit(order, serving.studio, serving.expression)
    return Commission(order, inputs, sitting, found, time.perf_counter() - started)


def finish(commission: Commission, made: Any, serving: Serving, out: Path | None = None) -> dict[str, Any]:
    """Write a portrait (diffsfsr.portrait.compose.Portrait) with its sidecar, which is returned.

    Its name is a hash of everything it is made from, so that making it twice writes the same file. `out` puts it elsewhere.
    """
    from diffsfsr.face.images import write_image
    from diffsfsr.portrait import provenance

    started = time.perf_counter()
    order, studio, c = commission.order, serving.studio, commission
    away = c.found.negative if c.found and c.sitting.negative is not None else None
    told = [np.float32(vector).tobytes() for vector in (c.found.vector if c.found else None, away) if vector is not None]
    name = order.name(c.inputs, serving.version, b"".join(told), studio.absent)
    path = out or serving.folder / f"{name}.png"
    sha256 = write_image(path, made.image)
    seconds = c.seconds + made.timings["generate"] + made.timings["paste"] + time.perf_counter() - started
    sidecar = provenance.sidecar(path, sha256, order, c.inputs, c.found.facts if c.found else None, serving.version, studio, made, seconds)
    provenance.write(path, sidecar)
    if serving.served:
        serving.served.keep(name, serving.version, _embeddings(commission))
    return sidecar


def _embeddings(commission: Commission) -> dict[str, tuple[np.ndarray, list[str]]]:
    """Of a portrait's inputs: catalogue column -> embedding, and the photographs behind it. The expression is the scene's own, since
    the one it is given comes out of the catalogue."""
    order, sitting, files = commission.order, commission.sitting, commission.inputs
    scene = [files[order.scene]] if order.scene else [f"{order.prompt} {order.seed}"]
    who = scene if order.task == "expression" else [files[path] for path in order.selfies]
    identity = {f"id_{name}": (vector.cpu().numpy(), who) for name, vector in sitting.identity.items()}
    return identity | {"expression": (sitting.own.cpu().numpy(), scene)}


def fulfil(order: Order, serving: Serving, out: Path | None = None) -> tuple[dict[str, Any], np.ndarray]:
    """Make and write one portrait; returns its sidecar and the picture. Raises InputError for an order that cannot be fulfilled."""
    commission = begin(order, serving)
    made = serving.studio.paint([commission.sitting])[0]
    return finish(commission, made, serving, out), made.image


def _sheet(images: list[np.ndarray]) -> np.ndarray:
    from diffsfsr.face.images import contact_sheet

    return contact_sheet([images[i : i + 4] for i in range(0, len(images), 4)], cell=160)
