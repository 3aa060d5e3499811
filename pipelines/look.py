"""The commands that look, make or erase one thing at once, without the graph. Each takes the parsed arguments and returns its answer."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from diffsfsr.errors import InputError
from pipelines.environments import Environment

# --- photographs ------------------------------------------------------------------------------------------------------


def faces(args: Namespace) -> Any:
    """Aligned faces (path, face_id, box, pose) and rejects (path, sha256, reason, detail)."""
    found, rejects = _align(args.paths, args.face, size=128)
    keep = ("path", "sha256", "face_id", "face_index", "box", "yaw", "pitch", "roll")
    answer = {"faces": [{k: row[k] for k in keep} for row in found], "rejects": rejects}
    if args.json:
        return answer
    lines = [
        f"{_shown(r['path'])}: face at {r['box']}, yaw {r['yaw']:.0f}, pitch {r['pitch']:.0f}, roll {r['roll']:.0f} degrees" for r in found
    ]
    lines += [f"{_shown(r['path'])}: {r['reason']} ({r['detail']})" for r in rejects]
    return "\n".join([*lines, f"{len(found)} faces, {len(rejects)} rejected"])


def _shown(name: str) -> str:
    """A name in one line: what a terminal would obey is written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _align(paths: list[str], face: str, size: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:

    from diffsfsr.config import Data
    from diffsfsr.cores import cores
    from diffsfsr.face.collection import align_rows, scan, source_row

    data = Data(face=face, max_outside=1.0)
    if face not in ("only", "largest") and not face.isdecimal():
        raise InputError(f"--face {face!r} is not 'only', 'largest' or an index from the left")
    found, rejects = [], []
    for name in paths:
        path = Path(name)
        if not path.exists() and not path.is_symlink():
            raise InputError(f"{name} does not exist: give photographs or folders of them")
        folder = path if path.is_dir() else path.parent
        rows = scan(path) if path.is_dir() else [source_row(path)]
        done, failed = align_rows(rows, folder, folder.name or "here", size, data, cores())
        for row in (*done, *failed):
            row["path"] = str(folder / row["path"])
        found += done
        rejects += failed
    return found, rejects


def embed(args: Namespace) -> Any:
    """Embeddings as Parquet: path, face_id, embedding. Answers with the counts and the rejects."""
    import numpy as np
    import pyarrow as pa

    from assets.embeddings import encode_all, load_dln
    from assets.stores.workspace import Workspace
    from diffsfsr import presets, tables
    from diffsfsr.encoders import load_encoder

    preset = presets.preset(args.preset)
    encoder: Any = load_dln(Workspace(Environment.current().home), preset) if args.encoder == "dln" else load_encoder(args.encoder)
    out = Path(args.out)
    if out.suffix != ".parquet" or not out.absolute().parent.is_dir() or out.is_dir():
        raise InputError(f"--out {args.out} must be a file's name that ends in .parquet, in a folder that exists")
    found, rejects = _align(args.paths, "only", preset.crop)
    vectors: Any = np.zeros((0, encoder.dim), np.float32)
    if found:
        vectors = np.concatenate(list(encode_all(encoder, tables.from_rows(found, tables.FACES))))
    columns = {name: pa.array([row[name] for row in found], tables.TEXT) for name in ("path", "face_id")}
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), encoder.dim)
    tables.write(out, pa.table({**columns, "embedding": embedding}), encoder.version[:16])
    return {"out": str(out), "encoder": args.encoder, "faces": len(found), "rejects": rejects}


# --- words ------------------------------------------------------------------------------------------------------------


def emotions(args: Namespace) -> Any:
    """The tree, or one word with how it resolves on the faces that are catalogued here."""
    from diffsfsr import emotions as words

    if args.word is None:
        if args.json:
            return words.TREE
        lines = []
        for primary, clusters in words.TREE.items():
            lines.append(primary)
            lines += [f"  {secondary}: {', '.join(found)}" for secondary, found in clusters.items()]
        return "\n".join(lines)
    found = words.lookup(args.word)
    answer: dict[str, Any] = {"word": found.word, "secondary": found.secondary, "primary": found.primary, "resolution": None}
    labels = _labels()
    if labels:
        resolution = words.resolve(args.word, labels)
        answer["resolution"] = {
            "how": resolution.how,
            "labels": list(resolution.labels),
            "faces": sum(labels[x] for x in resolution.labels),
        }
    return answer


def _labels() -> dict[str, int]:
    """Label -> faces, as the model in service looks words up: of the catalogue, or while there is no champion of the model that comes
    with the package."""
    import json

    from diffsfsr.emotions import at_hand
    from diffsfsr.portrait import shipped
    from pipelines.doctor import champion

    here = Environment.current()
    path, own = here.home / "models" / "labels.json", shipped.labels()
    if path.exists() and (not own or champion(here.mlflow)):
        return own | at_hand(json.loads(path.read_text(encoding="utf-8")), own)
    return own


# --- one portrait -----------------------------------------------------------------------------------------------------


def order(args: Namespace) -> Any:
    """The order that the arguments spell, checked; a prompt is refused where nothing here can paint it."""
    from diffsfsr.portrait.order import Order

    fields = ("emotion", "scene", "prompt", "task", "strength", "steps", "sampler", "seed", "face")
    wanted = Order(selfies=tuple(args.selfie), **{name: getattr(args, name) for name in fields}).check()
    if wanted.prompt:
        need_painter()
    return wanted


def need_painter() -> None:
    """Refuses a prompt where nothing here can paint it."""
    from diffsfsr.portrait.scenes import painter_folder

    painter_folder()


def portrait(args: Namespace) -> Any:
    """Make one portrait with the champion; answers with its sidecar."""
    wanted = order(args)
    out = picture_name(args.out, (".png", ".jpg", ".jpeg", ".webp"), (*wanted.selfies, wanted.scene)) if args.out else None
    from assets.portraits import fulfil
    from diffsfsr.portrait.sitting import photograph

    for file in filter(None, (*wanted.selfies, wanted.scene)):
        photograph(file)  # what is no picture is told before a model is loaded
    sidecar, _ = fulfil(wanted, champion(), out)
    return sidecar if args.json else sidecar["portrait"]


_LONGEST_NAME = 200  # bytes: most file systems take 255, and what is written first bears a longer one


def picture_name(name: str, endings: tuple[str, ...], given: tuple[str, ...]) -> Path:
    """`--out` as a path. Raises InputError where no picture can be written there, or it would replace one of the `given` files."""
    import tempfile

    from diffsfsr.portrait.provenance import sidecar_path

    out = Path(name)
    if not out.absolute().parent.is_dir() or out.suffix.lower() not in endings:
        *most, last = (ending for ending in endings if ending != ".jpeg")  # which .jpg stands for
        raise InputError(f"--out {name} must be a picture's name ({', '.join(most)} or {last}) in a folder that exists")
    if len(os.fsencode(out.name)) > _LONGEST_NAME:
        raise InputError(f"--out {name} is too long a name, with its record beside it: use at most {_LONGEST_NAME} bytes")
    if out.is_dir() or str(out.resolve()) in given:
        raise InputError(f"--out {name} is {'a folder' if out.is_dir() else 'one of the photographs given'}: choose another name")
    if sidecar_path(out).is_dir():
        raise InputError(f"--out {name}: its record would be {sidecar_path(out).name}, which is a folder: choose another name")
    try:
        tempfile.TemporaryFile(dir=out.absolute().parent).close()
    except OSError as error:
        raise InputError(f"--out {name}: nothing can be written in that folder ({error.strerror}): choose another") from error
    return out


def champion() -> Any:
    """The model in service here, loaded: the champion, or where there is none the model that comes with the package."""
    from assets.portraits import Serving
    from assets.stores.catalogue import Catalogue
    from assets.stores.registry import Registry

    here = Environment.current()
    return Serving.champion(Registry(here.mlflow, here.artifacts), lambda: Catalogue(here.catalogue), here.home / "portraits")


def verify(args: Namespace) -> Any:
    from diffsfsr.portrait.provenance import verify as check

    sidecar = check(Path(args.portrait))
    return {"portrait": args.portrait, "genuine": True, "model_version": sidecar["model_version"], "made_at": sidecar["made_at"]}


# --- erasure ----------------------------------------------------------------------------------------------------------


def forget(args: Namespace) -> Any:
    """Erase a person, a face or a data set from the catalogue, the registry and every table in the state folder; or a portrait."""
    from assets.stores.catalogue import Catalogue
    from assets.stores.workspace import Workspace

    if sum(bool(x) for x in (args.person, args.face, args.dataset, args.portrait)) != 1:
        raise InputError("forget needs exactly one of --person, --face, --dataset and --portrait")
    here = Environment.current()
    if args.portrait:
        return _forget_portrait(here, Path(args.portrait))
    copies = _forget_copies(here, {k: v for k, v in (("person", args.person), ("face_id", args.face), ("dataset", args.dataset)) if v})
    rows = Workspace(here.home).forget(person=args.person, face_id=args.face, dataset=args.dataset)
    if args.dataset and (here.home / "dagster").is_dir():
        _forget_partitions(here, args.dataset)
    ids = [args.face] if args.face else []
    tables = Catalogue(here.catalogue).forget(person=args.person, face_ids=ids, dataset=args.dataset)
    if not rows and not sum(tables.values()):
        raise InputError(f"nothing here is called {args.person or args.face or args.dataset!r}; `diffsfsr run prepare` names the data sets")
    note = "photographs, trained networks, finished portraits, and pictures in reports and in the run history are not touched"
    return {"rows_erased": {"files": rows, **tables, **copies}, "note": note}


def _forget_copies(here: Environment, which: dict[str, str]) -> dict[str, int]:
    """Catalogued faces where they stand besides: as words of registered versions, and among what is kept of requests."""
    from assets.stores.catalogue import Catalogue
    from assets.stores.registry import Registry
    from assets.stores.served import Served

    faces = Catalogue(here.catalogue).faces(["face_id", "sha256"], **which).to_pydict()
    copies = {
        "words_of_versions": Registry(here.mlflow, here.artifacts, here.home / "models").forget(faces["face_id"]),
        "requests": Served(here.home / "served").forget(photographs=set(faces["sha256"])),
    }
    return {name: count for name, count in copies.items() if count}


def _forget_portrait(here: Environment, portrait: Path) -> dict[str, Any]:
    """A finished portrait, its sidecar, and what is kept of the faces it was made from."""
    from assets.stores.served import Served
    from diffsfsr.portrait import provenance

    sidecar = provenance.verify(portrait)
    records = Served(here.home / "served").forget(photographs=set(sidecar["inputs_sha256"].values()))
    for file in (provenance.sidecar_path(portrait), portrait):
        file.unlink()
    return {"portrait": str(portrait), "requests_forgotten": records, "note": "the photographs themselves are not touched"}


def _forget_partitions(here: Environment, dataset: str) -> None:
    """Dagster offers no more runs for a data set that is gone."""
    from assets import partitions
    from assets.stores.workspace import Shard

    with here.instance() as instance:
        for key in instance.get_dynamic_partitions(partitions.shards.name or ""):
            if Shard.of(key).dataset == dataset:
                instance.delete_dynamic_partition(partitions.shards.name or "", key)
        instance.delete_dynamic_partition(partitions.datasets.name or "", dataset)
