"""`diffsfsr doctor`: what is installed and found on this machine, and one line on what to do about each gap.

Nothing is made, changed, downloaded or migrated, and no store is opened for writing.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sqlite3
import sys
import tomllib
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffsfsr.errors import InputError, NotReady
from pipelines.environments import Environment
from pipelines.machine import compiler, machine

Row = dict[str, Any]

# Another distribution that brings the same module; with both installed, the second overwrote files of the first.
_TWINS = {"opencv-python": "opencv-python-headless", "dlib-bin": "dlib", "psycopg2-binary": "psycopg2"}
_CLASHING = ("opencv-python", "dlib-bin")
_SETTINGS = {  # variable: what holds without it; of the first five, `Environment` says it
    "DIFFSFSR_HOME": "",
    "DIFFSFSR_CATALOGUE_URI": "",
    "DIFFSFSR_QUEUE_URL": "",
    "DIFFSFSR_MLFLOW_URI": "",
    "DIFFSFSR_ARTIFACTS": "",
    "DIFFSFSR_DATA": "no folder: --data takes paths only",
    "DIFFSFSR_WEIGHTS": "no folder: weights come from packages and from the state folder",
    "DIFFSFSR_WEIGHTS_MIRROR": "none: weights come from their published addresses",
    "DIFFSFSR_STARTER": "the model that comes with the package, where one does",
    "DIFFSFSR_GATES": "the gates that come with the package: assets/gates.toml",
    "DIFFSFSR_CORES": "as many as there are cores",
    "DIFFSFSR_NODES": "1: training runs on this machine alone",
    "DIFFSFSR_NODE_RANK": "no number: needed where several machines train",
    "DIFFSFSR_RENDEZVOUS": "no address: needed where several machines train",
    "DIFFSFSR_DEBUG": "off: errors in one line",
}
_SERVERS_OWN = ("DIFFSFSR_DAGSTER_", "DIFFSFSR_COMPUTE_", "DIFFSFSR_MLFLOW_", "DIFFSFSR_GUARD_")  # deploy/ and child processes
_UNREADABLE = "see that no other program has locked or damaged it"
_LOW_DISK = 5.0  # GB; the environment itself has 3, a small training run with its checkpoints about 1
_LOW_MEMORY = 4.0  # GB


def doctor(args: Namespace) -> Any:
    """Every finding, and the gaps with what to do. Raises NotReady, after the report, when a required package is missing."""
    found = examine()
    missing = [p["name"] for p in found["packages"] if p["found"] is None]
    if missing:
        print(_text(found), file=sys.stderr)
        raise NotReady(f"required packages are missing: {', '.join(missing)}; run `make setup`, or pip install -c constraints.txt -e .")
    return found if args.json else _text(found)


def examine() -> Row:
    """The findings as plain data."""
    gaps: list[Row] = []
    found: Row = {"python": {"version": platform.python_version(), "executable": sys.executable}, "packages": _packages(gaps)}
    found["machine"] = machine()
    found["compiler"] = compiler() or "none: nothing here needs one"
    found["settings"] = _settings(gaps)
    found["weights"] = _weights(gaps)
    found["state"] = _state(gaps)
    _machine_gaps(found["machine"], gaps)
    return {**found, "gaps": gaps}


def _gap(gaps: list[Row], what: str, do: str) -> None:
    gaps.append({"what": what, "do": do})


# --- packages ---------------------------------------------------------------------------------------------------------


def _packages(gaps: list[Row]) -> list[Row]:
    """One row per required package: name, wanted versions, found version or None."""
    rows = []
    for name, wanted in requirements():
        found = _version(name) or _version(_TWINS.get(name, ""))
        rows.append({"name": name, "wanted": wanted, "found": found})
        if found is None:
            _gap(gaps, f"package {name} is missing", "run `make setup`, or pip install -c constraints.txt -e .")
        elif not _fits(found, wanted):
            _gap(gaps, f"package {name} is {found}, not {wanted}", f"pip install -c constraints.txt '{name}{wanted}'")
    for name in _CLASHING:
        twin = _TWINS[name]
        if _version(name) and _version(twin):
            what = f"{name} and {twin} are both installed and overwrite each other's files"
            _gap(gaps, what, f"pip uninstall -y {name} {twin}, then pip install -c constraints.txt {name}")
    return rows


def requirements() -> list[tuple[str, str]]:
    """(name, wanted versions) of every required package: of pyproject.toml in a checkout, else of the installed package."""
    file = Path(__file__).resolve().parents[1] / "pyproject.toml"
    if file.exists():
        lines = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        lines = [line for line in importlib.metadata.requires("diffsfsr") or [] if "extra ==" not in line]
    matches = [re.match(r"\s*([\w.-]+)(?:\[[^]]*\])?\s*([^;]*)", line) for line in lines]
    return [(m[1], m[2].strip()) for m in matches if m]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name) if name else None
    except importlib.metadata.PackageNotFoundError:
        return None


def _fits(found: str, wanted: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True
    return SpecifierSet(wanted).contains(found, prereleases=True)


# --- the machine ------------------------------------------------------------------------------------------------------


def _machine_gaps(found: Row, gaps: list[Row]) -> None:
    if found["memory_gb"] < _LOW_MEMORY:
        _gap(gaps, f"{found['memory_gb']} GB of memory is little", "use the presets demo or tiny")
    if found["torch"] is None:
        _gap(gaps, f"torch: {found['accelerator']}", "run `make setup` again")
    elif found["accelerator"].startswith("none") and shutil.which("nvidia-smi"):
        what = f"an NVIDIA driver is here but torch {found['torch']} sees no GPU"
        _gap(gaps, what, "install the CUDA build of that torch version, and see that `nvidia-smi` lists the GPU")


# --- settings ---------------------------------------------------------------------------------------------------------


def _settings(gaps: list[Row]) -> list[Row]:
    """One row per variable of this project: what it is set to, and what holds. Passwords are left out."""
    from diffsfsr.errors import did_you_mean

    here = Environment.current(usable=False)
    resolved = dict(zip(_SETTINGS, (str(here.home), here.catalogue, here.queue, here.mlflow, here.artifacts), strict=False))
    rows = []
    for name, default in _SETTINGS.items():
        value = os.environ.get(name, "")
        holds = resolved.get(name) or value or default
        rows.append({"name": name, "set": _shown(value) or None, "holds": _shown(holds)})
    for name in ("DIFFSFSR_DATA", "DIFFSFSR_WEIGHTS"):
        if os.environ.get(name) and not Path(os.environ[name]).is_dir():
            _gap(gaps, f"{name}={os.environ[name]} is not a folder", f"correct {name} or unset it")
    for name in sorted(os.environ):
        if name.startswith("DIFFSFSR_") and name not in _SETTINGS and not name.startswith(_SERVERS_OWN):
            _gap(gaps, f"{name} is set, which nothing reads{did_you_mean(name, _SETTINGS)}", f"unset {name}")
    return rows


def _shown(address: str) -> str:
    """The address without its password."""
    return re.sub(r"//([^/:@]*):[^/@]*@", r"//\1:***@", address)


# --- weights ----------------------------------------------------------------------------------------------------------


def _weights(gaps: list[Row]) -> list[Row]:
    """One row per file of the zoo: where it is or None, and what to do where it is missing or of the wrong size."""
    from diffsfsr import weights
    from diffsfsr.errors import InputError

    rows: list[Row] = []
    agreed: dict[str, dict[str, str]] = {}
    try:
        agreed = weights.accepted()
    except InputError as error:
        _gap(gaps, "the record of accepted licences cannot be read", str(error))
    try:
        weights.pins()
    except InputError as error:
        _gap(gaps, "the record of hashes of first pulls cannot be read", str(error))
    for name, entry in weights.ZOO.items():
        row: Row = {"name": name, "role": entry.role, "licence": entry.licence, "commercial": entry.commercial, "found": None, "do": ""}
        row["accepted"] = agreed.get(name, {}).get("accepted")
        try:
            row["found"] = str(weights.resolve(name))
        except NotReady as error:
            row["do"] = str(error).partition("is not on this machine: ")[2] or str(error)
        except InputError as error:
            row["found"], row["do"] = str(weights.find(name)), str(error)
            _gap(gaps, f"the file of {name} is not the right one", str(error))
        except OSError as error:
            row["do"] = f"see to {error.filename}: {error.strerror}"
        rows.append(row)
    missing = [row for row in rows if row["found"] is None]
    needed = [row for row in missing if weights.ZOO[row["name"]].packaged]
    for row in needed:
        _gap(gaps, f"{row['name']} ({row['role']}) is missing, without which no face is found or recognised", row["do"])
    if len(missing) > len(needed):
        do = "nothing for portraits, to train on from the model that comes with the package, and for the presets demo and tiny; else "
        do += "`diffsfsr weights pull NAME`, or name their folder in DIFFSFSR_WEIGHTS"
        _gap(gaps, f"{len(missing) - len(needed)} optional weights are not here: {', '.join(_optional(missing))}", do)
    return rows


def _optional(missing: list[Row]) -> list[str]:
    """Names of missing files that a person may do without, a group by its own name."""
    from diffsfsr.weights import ZOO

    return list(dict.fromkeys(ZOO[row["name"]].group or row["name"] for row in missing if not ZOO[row["name"]].packaged))


# --- state ------------------------------------------------------------------------------------------------------------


def _state(gaps: list[Row]) -> Row:
    """The state folder, the data sets and networks known in it, and the champion."""
    here = Environment.current(usable=False)
    place = next(p for p in (here.home, *here.home.parents) if p.exists())
    writable = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    free = shutil.disk_usage(place).free / 1e9
    if not writable:
        why = "is not writable" if place.is_dir() else "is not a folder"
        _gap(gaps, f"the state folder {here.home} cannot be used: {place} {why}", "set DIFFSFSR_HOME to a folder that can be written")
    if free < _LOW_DISK:
        _gap(gaps, f"{free:.1f} GB are free at {place}", "free some disk, or set DIFFSFSR_HOME to another one")
    found: Row = {"home": str(here.home), "exists": here.home.is_dir(), "writable": writable, "free_gb": round(free, 1)}
    found["data_sets"] = sorted(p.parent.name for p in here.home.glob("data/*/folder.json"))
    found["networks"] = {p.name: sorted(f.stem for f in p.glob("*.json")) for p in sorted(here.home.glob("models/*/"))}
    found["catalogue"] = _shown(here.catalogue) if "://" in here.catalogue or Path(here.catalogue).is_dir() else "absent"
    found["shipped_model"] = _shipped(gaps)
    found["champion"] = _champion(here.mlflow, gaps, found["shipped_model"])
    if not found["data_sets"]:
        _gap(gaps, "no data set is known yet", "run `diffsfsr run prepare --data DIR`, or `make demo`")
    return found


def _shipped(gaps: list[Row]) -> str | None:
    """The folder of the model that comes with the package, which makes portraits where there is no champion. What of it can be read without
    torch is read; of its weights whether each file is whole."""
    from diffsfsr.portrait import shipped
    from diffsfsr.portrait.words import WORD_TABLE, beside

    found = shipped.folder()
    if not found:
        return None
    try:
        shipped.preset_of(found)
        words, table = shipped.evaluation(found)["words"], beside(found)
        if not table or table.labels != words:
            raise InputError(f"{found / WORD_TABLE} is not the one that evaluation.json beside it counts")
        shipped.check_whole(found)
    except InputError as error:
        _gap(gaps, f"the model that comes with the package is damaged: {error}", "install the package again, or `diffsfsr export` it")
    return str(found)


def _champion(mlflow: str, gaps: list[Row], shipped: str | None) -> str:
    """The champion's version, read from a local MLflow database without MLflow; a server is not asked."""
    file, do = _database(mlflow), "run `diffsfsr run train`, `evaluate` and `promote`, or `make demo`"
    if not file:
        return f"not asked: MLflow is at {_shown(mlflow)}"
    if not file.exists():
        if not shipped:
            _gap(gaps, f"there is no model yet: {file} is absent", do)
        return f"none: {file.name} is absent"
    try:
        version = champion(mlflow)
    except InputError as error:
        _gap(gaps, f"{file} cannot be read ({error.__cause__})", _UNREADABLE)
        return f"unknown: {file.name} cannot be read"
    if not version:
        if not shipped:
            _gap(gaps, "no model is champion yet", do)
        return "none"
    return f"version {version}"


def champion(mlflow: str) -> int | None:
    """The champion's version in a local MLflow database, None where there is none or it is a server's to say. Raises InputError
    where it cannot be read."""
    file = _database(mlflow)
    try:
        return next(_aliases(file), None) if file and file.exists() else None
    except sqlite3.Error as error:
        raise InputError(f"{file} cannot be read ({error}): {_UNREADABLE}") from error


def _database(mlflow: str) -> Path | None:
    return Path(mlflow.removeprefix("sqlite:///")).resolve() if mlflow.startswith("sqlite:///") else None


def _aliases(file: Path) -> Iterator[int]:
    connection = sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=2)
    try:
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'registered_model_aliases'").fetchone():
            query = "SELECT version FROM registered_model_aliases WHERE name = 'diffsfsr' AND alias = 'champion'"
            yield from (int(version) for (version,) in connection.execute(query))
    finally:
        connection.close()


# --- for a person -----------------------------------------------------------------------------------------------------


def _text(found: Row) -> str:
    packages, m, s = found["packages"], found["machine"], found["state"]
    restricted = [f"{w['name']} ({w['licence']})" for w in found["weights"] if w["found"] and not w["commercial"]]
    agreed = [f"{w['name']} ({w['licence']}, {w['accepted']})" for w in found["weights"] if w["accepted"]]
    width = max(len(p["name"]) for p in packages)
    return "\n".join(
        [
            f"Python {found['python']['version']} at {found['python']['executable']}",
            *(f"  {p['name']:{width}}  {p['found'] or 'MISSING'}  (needs {p['wanted'] or 'any'})" for p in packages),
            f"Machine: {m['processor']}, {m['cores']} cores, {m['memory_gb']} GB, load {m['load']}",
            f"  accelerator: {m['accelerator']}",
            f"  compiler: {found['compiler']}",
            "Settings",
            *(f"  {v['name']:23}  {v['holds']}{'' if v['set'] else '  (default)'}" for v in found["settings"]),
            f"State: {s['home']}{'' if s['exists'] else ' (made when first needed)'}, {s['free_gb']} GB free",
            f"  data sets: {', '.join(s['data_sets']) or 'none'}",
            f"  networks: {'; '.join(f'{k}: ' + ', '.join(v) for k, v in s['networks'].items()) or 'none'}",
            f"  catalogue: {s['catalogue']}",
            f"  champion: {s['champion']}",
            f"  model that comes with the package, used where there is no champion: {s['shipped_model'] or 'none'}",
            "Weights",
            *(f"  {w['name']:35}  {w['role']:31}  {w['found'] or 'not here: ' + w['do']}" for w in found["weights"]),
            f"  here, and not for commercial use: {', '.join(restricted) or 'none'}",
            f"  licences accepted for pulling: {', '.join(agreed) or 'none'}",
            f"Gaps: {len(found['gaps']) or 'none'}",
            *(f"  {g['what']}\n    -> {g['do']}" for g in found["gaps"]),
        ]
    )
