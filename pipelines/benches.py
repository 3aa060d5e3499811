"""What `diffsfsr bench` measures: for each benchmark, pairs of calls that do the same work, ours and a peer's.

Inputs are seeded and synthetic, or photographs that the packages ship; networks that training would make are new ones.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsfsr.config import Data, Preset
from diffsfsr.errors import NotReady

CATALOGUE_ROWS = 20_000


@dataclass(frozen=True)
class Pair:
    """Two calls to time against each other.

    `difference` runs both once, untimed, and says by how much their results differ: above `tolerance` they did not do the
    same work. `items` and `peer_items` are what one call finishes; a peer that takes one item at a time is timed on a few.
    """

    name: str
    batch: int
    ours: Callable[[], Any]
    peer_name: str
    peer: Callable[[], Any]
    difference: Callable[[], float]
    tolerance: float
    items: int = 1
    peer_items: int = 1
    memory: bool = False  # whether the peaks of both are worth a look


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _largest(a: Any, b: Any) -> float:
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max())


# --- encoders ---------------------------------------------------------------------------------------------------------


def encoders(preset: Preset) -> Iterator[Pair]:
    """Identity and expression embeddings on dlib's network, and alignment, against dlib's own Python API."""
    import dlib

    from diffsfsr import weights
    from diffsfsr.encoders.dlib_net import DlibResNet
    from diffsfsr.encoders.dln import Dln
    from diffsfsr.face.alignment import align

    image, chips = _group_photograph(preset.crop)
    oracle = dlib.face_recognition_model_v1(str(weights.resolve("dlib-face")))
    net = DlibResNet.from_dat(weights.resolve("dlib-face")).eval()
    dln = Dln.from_identity(net, preset.dln.dim).eval().to(device())
    net.to(device())

    def describe(some: np.ndarray) -> np.ndarray:
        return np.array(oracle.compute_face_descriptor(list(some)))

    def check(network: Any, some: np.ndarray, few: np.ndarray) -> float:
        return _largest(_run(network, some)[: len(few)], describe(few))

    for batch in (1, 8, 32):
        some = chips[np.arange(batch) % len(chips)]
        few = some[:2]  # dlib's API takes one after the other: two tell its speed
        calls = (partial(_run, net, some), "dlib's compute_face_descriptor", partial(describe, few), partial(check, net, some, few))
        yield Pair("identity embedding", batch, *calls, 1e-4, batch, len(few))
    for batch in (1, 8):
        some = chips[np.arange(batch) % len(chips)]
        few = some[:1]
        twice = partial(describe, np.concatenate([few, few]))
        # The trained twin has no counterpart in dlib; the frozen one is compared.
        calls = (partial(_run, dln.embed, some), "two passes of dlib's API", twice, partial(check, dln.frozen, some, few))
        yield Pair("expression embedding (DLN)", batch, *calls, 1e-4, batch, len(few))

    detector, data = dlib.get_frontal_face_detector(), Data(face="largest", max_outside=1.0)
    ours, peer = partial(align, image, preset.crop, data), partial(detector, image, 0)
    yield Pair("detect, choose, align", 1, ours, "dlib's detector alone", peer, lambda: _largest(ours().count, len(peer())), 0.0)


@torch.inference_mode()
def _run(network: Callable[[Tensor], Tensor], chips: np.ndarray) -> np.ndarray:
    """uint8 chips (n,150,150,3), as dlib takes them -> (n, D)."""
    return network(torch.from_numpy(chips).to(device()).permute(0, 3, 1, 2).float()).cpu().numpy()


def _group_photograph(size: int) -> tuple[np.ndarray, np.ndarray]:
    """insightface's photograph of six people, and dlib's chips of them (6,150,150,3) uint8."""
    from importlib.util import find_spec

    from diffsfsr.encoders.dlib_net import dlib_chips
    from diffsfsr.face.alignment import align_all
    from diffsfsr.face.images import read, to_tensor

    spec = find_spec("insightface")
    files = [Path(folder, "data", "images", "t1.jpg") for folder in (spec.submodule_search_locations or [])] if spec else []
    path = next((f for f in files if f.exists()), None)
    if path is None:
        raise NotReady("bench encoders needs data/images/t1.jpg of the package insightface; pip install -c constraints.txt insightface")
    image = read(path)
    landmarks = torch.from_numpy(np.stack([face.landmarks for face in align_all(image, size)]))
    chips = torch.cat([dlib_chips(to_tensor(image), item[None]) for item in landmarks])
    return image, chips.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


# --- training ---------------------------------------------------------------------------------------------------------


def network(preset: Preset) -> Any:
    """A new model for the preset on the device. Layers that start at zero are stirred, or conditions would not reach the output."""
    from diffsfsr.model.unet import DiffSFSR

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DiffSFSR.from_preset(preset, dict.fromkeys(preset.conditioning.identity, 128))
        for p in model.parameters():
            if not p.any():
                torch.nn.init.normal_(p, std=0.02)
    return model.to(device())


def conditions(preset: Preset, batch: int) -> dict[str, Any]:
    """Random condition latents and embeddings for a batch, the arguments of the model beside z_t and t."""
    draw = torch.Generator().manual_seed(1)
    h, c = preset.latent, preset.conditioning
    condition = torch.randn((batch, preset.autoencoder.channels + c.mask_channel, h, h), generator=draw)
    identity = {name: torch.randn((batch, 128), generator=draw).to(device()) for name in c.identity}
    expression = torch.nn.functional.normalize(torch.randn((batch, preset.dln.dim), generator=draw), dim=1)
    return {"condition": condition.to(device()), "identity": identity, "expression": expression.to(device())}


def train(preset: Preset) -> Iterator[Pair]:
    """A step of the UNet with the improved midpoint in closed form, against Eq. 2 applied t - s times.

    Forward, Eq. 3 on random latents, the midpoint's estimate compared with z_0 in the place of Eq. 5 and 6, and backward. No
    decoder and no experts, which would cost both the same; no optimiser.
    """
    from diffsfsr.model.diffusion import improved_midpoint

    model, batch = network(preset).train(), preset.training.batch
    t = _spread(preset, batch)
    carriers = torch.nonzero(t <= preset.objective.aux_max_t).flatten()[: max(1, round(preset.objective.aux_fraction * batch))]
    longest = int((t - t // 2)[carriers].max())
    step = partial(_step, model, preset, conditions(preset, batch), t.to(device()), carriers.to(device()))

    def difference() -> float:
        ours, peer = (step(midpoint, exact=True) for midpoint in (improved_midpoint, folded_midpoint))
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, peer, strict=True))

    peer_name = f"the same step, Eq. 2 applied up to {longest} times"
    calls = (partial(step, improved_midpoint), peer_name, partial(step, folded_midpoint), difference)
    yield Pair("UNet training step", batch, *calls, 1e-4, batch, batch, memory=True)


def _spread(preset: Preset, batch: int) -> Tensor:
    """Timesteps (B,) spread evenly over 1..T, in a random order."""
    even = (torch.arange(batch) + 0.5) / batch * preset.schedule.steps
    return even.long().clamp(min=1)[torch.randperm(batch, generator=torch.Generator().manual_seed(2))]


def _step(model: Any, preset: Preset, given: dict[str, Any], t: Tensor, items: Tensor, midpoint: Any, exact: bool = False) -> tuple[Tensor, Tensor]:
    """One step; returns the midpoint's estimate and the gradient at the first layer.

    `exact`: float32 and no noise in the midpoint, so that two ways to it can be compared.
    """
    from diffsfsr.model.diffusion import add_noise, training_target
    from diffsfsr.training.losses import diffusion_loss

    draw, h = torch.Generator().manual_seed(3), preset.latent
    z_0, eps = (torch.randn((len(t), preset.autoencoder.channels, h, h), generator=draw).to(t.device) for _ in range(2))
    z_t = add_noise(z_0, eps, t, model.schedule)
    model.zero_grad(set_to_none=True)
    with torch.autocast(t.device.type, torch.bfloat16, enabled=preset.training.precision == "bf16" and not exact):
        output = model(z_t, t, **given).float()
        chosen = {k: {n: e[items] for n, e in v.items()} if isinstance(v, dict) else v[items] for k, v in given.items()}
        paid = [output[items]]  # the midpoint's first prediction is the one that Eq. 3 has paid for

        def predict_z0(z: Tensor, at: Tensor) -> Tensor:
            return model.z0_from_output(paid.pop() if paid else model(z, at, **chosen).float(), z, at)

        estimate = midpoint(predict_z0, z_t[items], t[items], model.schedule, draw, preset.objective.midpoint_noise and not exact)
    target = training_target(preset.schedule.prediction, z_0, eps, t, model.schedule)
    (diffusion_loss(output, target).mean() + diffusion_loss(estimate.float(), z_0[items]).mean()).backward()
    return estimate.detach(), model.unet.conv_in.weight.grad


def folded_midpoint(predict_z0: Any, z_t: Tensor, t: Tensor, schedule: Any, generator: torch.Generator, noise: bool = True) -> Tensor:
    """Section 3.3 as it is written: Eq. 2 applied t - s times with one z0_hat, a draw of noise each time."""
    from diffsfsr.model.diffusion import gaussian, posterior

    s, now, z = t // 2, t, z_t
    z0_hat = predict_z0(z_t, t)
    while bool((now > s).any()):
        moves = (now > s).view(-1, 1, 1, 1)
        mean, variance = posterior(z0_hat, z, now.clamp(min=1), schedule)
        z = torch.where(moves, mean + variance.sqrt() * gaussian(z, generator) if noise else mean, z)
        now = torch.where(now > s, now - 1, now)
    return torch.where((s == 0).view(-1, 1, 1, 1), z0_hat, predict_z0(z, s.clamp(min=1)))


# --- sampling ---------------------------------------------------------------------------------------------------------


def sample(preset: Preset) -> Iterator[Pair]:
    """Latents from noise at the preset's steps and guidance, against a plain diffusers loop, one item at a time."""
    from diffsfsr.model import sampling

    model, row = network(preset).eval(), preset.sampling
    shape = (preset.autoencoder.channels, preset.latent, preset.latent)
    scheduler = sampling.make_scheduler(preset.schedule, row.sampler)
    for batch in (1, 8):
        given = conditions(preset, batch)
        bound = sampling.conditioned(model, given["condition"], given["identity"], given["expression"])
        ours = partial(sampling.sample, bound, shape, scheduler, row.steps, list(range(batch)), row.guidance, device())
        peer = partial(_plain_loop, model, given, shape, sampling.make_scheduler(preset.schedule, row.sampler), row.steps, row.guidance)
        check = partial(_worst, ours, peer, sorted({0, batch - 1}))
        yield Pair(f"{row.steps} steps of {row.sampler}", batch, ours, "diffusers' loop, one at a time", partial(peer, 0), check, 1e-2, batch)


def _worst(ours: Callable[[], Tensor], peer: Callable[[int], Tensor], items: list[int]) -> float:
    """The largest difference of some items, in standard deviations of the peer's latents."""
    made = ours()
    pairs = [(made[i : i + 1], peer(i)) for i in items]
    return max(float((a - b).abs().max() / b.std()) for a, b in pairs)


@torch.no_grad()
def _plain_loop(model: Any, given: dict[str, Any], shape: tuple[int, ...], scheduler: Any, steps: int, guidance: float, item: int) -> Tensor:
    """What a user of diffusers writes: latents (1,C,h,w) of one item, its index being its seed."""
    own = {name: e[item : item + 1] for name, e in given["identity"].items()}
    everything = torch.ones((1, len(own) + 1), dtype=torch.bool, device=device())
    tokens = torch.cat([model.tokens(own, given["expression"][item : item + 1], p) for p in (everything, ~everything)[: 1 + (guidance != 1)]])
    pooled = {"class_labels": tokens.mean(1)} if model.unet.config.class_embed_type else {}
    condition = given["condition"][item : item + 1]
    scheduler.set_timesteps(steps)
    z = torch.randn((1, *shape), generator=torch.Generator().manual_seed(item)).to(device()) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = torch.cat([z, condition], 1).expand(len(tokens), -1, -1, -1)
        output = model.unet(x, t, encoder_hidden_states=tokens, **pooled).sample
        if guidance != 1:
            output = output[1:] + guidance * (output[:1] - output[1:])
        z = scheduler.step(output, t, z).prev_sample
    return z


# --- catalogue --------------------------------------------------------------------------------------------------------


def catalogue(preset: Preset) -> Iterator[Pair]:
    """Writing faces, drawing one by word and finding the nearest, over a synthetic catalogue in a temporary folder."""
    from assets.stores.catalogue import Catalogue

    rows, vectors = synthetic_faces(CATALOGUE_ROWS, preset.dln.dim)
    with tempfile.TemporaryDirectory() as folder:
        yield _writing(rows, Path(folder))
        made = Catalogue(f"{folder}/catalogue")
        made.upsert_faces(rows)
        made.index()
        yield _drawing(made, rows)
        yield _searching(made, rows, vectors)


def synthetic_faces(count: int, dim: int) -> tuple[Any, np.ndarray]:
    """(a table of faces with the columns that a prepared shard fills, their expressions (count, dim) float32 of unit length)."""
    import pyarrow as pa

    from diffsfsr.emotions import TREE

    rng = np.random.default_rng(0)
    words = np.array(sorted({word for clusters in TREE.values() for listed in clusters.values() for word in listed}))
    vectors = rng.standard_normal((count, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    columns = {
        "face_id": [f"bench/{i:016x}/0" for i in range(count)],
        "dataset": ["bench"] * count,
        "split": np.where(rng.random(count) < 0.1, "test", "train"),
        "person": [f"person {i // 4}" for i in range(count)],
        "emotion": words[rng.integers(len(words), size=count)],
        "path": [f"person {i // 4}/{i}.jpg" for i in range(count)],
        "expression": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim),
        "expression_version": ["bench"] * count,
    }
    return pa.table(columns), vectors


def _writing(rows: Any, folder: Path) -> Pair:
    import lancedb

    from assets.stores.catalogue import Catalogue

    def ours() -> int:
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            made = Catalogue(fresh)
            made.upsert_faces(rows)
            return made.counts()["faces"]

    def peer() -> int:
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            return lancedb.connect(fresh).create_table("faces", rows).count_rows()

    return Pair("upsert", len(rows), ours, "LanceDB's create, no keys", peer, lambda: _largest(ours(), peer()), 0.0, len(rows), len(rows))


def _drawing(made: Any, rows: Any) -> Pair:
    """A random face of a word, against fetching the ids of the word and choosing one."""
    import lancedb
    import pyarrow.compute as pc

    table, rng = lancedb.connect(made.uri).open_table("faces"), np.random.default_rng(0)
    words = sorted(made.labels())

    def peer(word: str | None = None) -> Any:
        word = word or words[rng.integers(len(words))]
        ids = table.to_lance().to_table(columns=["face_id", "emotion"])
        ids = ids.filter(pc.equal(ids["emotion"], word))["face_id"]
        return ids[int(rng.integers(len(ids)))].as_py(), ids

    def ours() -> Any:
        return made.random_face(words[rng.integers(len(words))], rng)

    def strays() -> float:
        drawn = [ours() for _ in range(20)]
        return float(sum(row["face_id"] not in peer(row["emotion"])[1].to_pylist() for row in drawn))

    return Pair("random face of a word", len(rows), ours, "the word's ids by a pyarrow filter", peer, strays, 0.0)


def _searching(made: Any, rows: Any, vectors: np.ndarray, k: int = 10) -> Pair:
    """The k nearest faces to a random expression, against numpy on vectors that lie in memory already."""
    rng, ids = np.random.default_rng(0), np.array(rows["face_id"])

    def ours(query: np.ndarray | None = None) -> Any:
        return made.nearest(_unit(rng, vectors.shape[1]) if query is None else query, k)

    def peer(query: np.ndarray | None = None) -> Any:
        query = _unit(rng, vectors.shape[1]) if query is None else query
        squared = np.square(vectors - query).sum(1)
        nearest = np.argpartition(squared, k)[:k]
        nearest = nearest[np.argsort(squared[nearest])]
        return ids[nearest], np.sqrt(squared[nearest])

    def difference() -> float:
        queries = [_unit(rng, vectors.shape[1]) for _ in range(5)]
        pairs = [(ours(q), peer(q)) for q in queries]
        same = all(set(a["face_id"].to_pylist()) == set(b[0]) for a, b in pairs)
        return max(_largest(a["distance"], b[1]) for a, b in pairs) if same else float("inf")

    return Pair(f"nearest {k}", len(rows), ours, "numpy, brute force in memory", peer, difference, 1e-4)


def _unit(rng: np.random.Generator, dim: int) -> np.ndarray:
    vector = rng.standard_normal(dim).astype(np.float32)
    return vector / np.linalg.norm(vector)


BENCHES: dict[str, Callable[[Preset], Iterator[Pair]]] = {"encoders": encoders, "train": train, "sample": sample, "catalogue": catalogue}
