"""`diffsfsr run`: its words resolved and checked before anything is loaded, then the job."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from diffsfsr.errors import InputError
from pipelines.environments import Environment


def run(args: Namespace) -> Any:
    """Resolve the settings before anything is loaded, then run the job."""
    from diffsfsr import config, presets, weights
    from pipelines import judge

    _check_start(args)
    name = presets.tuned(args.preset) if args.start else args.preset
    changes = config.read_changes(args.set)
    preset = config.override(presets.preset(name), changes)
    weights.check_names(preset)
    weights.refuse_non_commercial(preset)
    source = _data_source(args.data) if args.data else None
    _check_promotion(args)
    judge.check(args)
    if source and args.job != "prepare" and not args.start:
        raise InputError("--data goes with `run prepare` and `run train --from`; the other jobs use the data sets that are prepared")
    if args.split and not source:
        raise InputError("--split goes with `run prepare --data PATH`; it is remembered of each data set")
    if args.dry_run:
        resolved = {"job": args.job, "data": str(source) if source else None, "preset": config.to_dict(preset)}
        return resolved | (_costs(preset, args.json) if (args.job, preset.trains) == ("train", "diffusion") else {})
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from pipelines.operate import Operator

    operator = Operator(Environment.current(), name, changes)
    if args.job == "prepare":
        return _prepared(operator, source, args)
    if args.start:
        return tune(operator, args.start, partial(_prepared, operator, source, args) if source else None)
    if args.job == "evaluate":
        return judge.evaluate(args, operator)
    if args.job in ("assess", "midpoints"):
        found = operator.assess() if args.job == "assess" else operator.midpoints(args.model)
        return found if args.json else Path(found["report"]).read_text(encoding="utf-8")
    if args.job == "promote":
        return _promoted(operator, args)
    return {"train": operator.train, "generate": operator.generate}[args.job]()


def _prepared(operator: Any, source: Path | None, args: Namespace) -> dict[str, Any]:
    """The answer of `run prepare`: a list is fetched first, and frames are taken of videos."""
    if source and source.is_file():
        folder, missing = _fetched(source, operator, args.name)
        return operator.prepare(folder, args.name, args.split) | {"not_fetched": missing}
    if source and (framed := _framed(source, operator, args.name)):
        return operator.prepare(framed[0], args.name, args.split) | {"without_frames": framed[1]}
    return operator.prepare(source, args.name, args.split)


def tune(operator: Any, model: str, prepare: Callable[[], dict[str, Any]] | None) -> dict[str, Any]:
    """Prepare the photographs, where there are any to prepare, and train on them alone, else on all that is prepared; returns what there
    is. A model that does not fit the preset is refused before anything runs. The same command goes on where it stopped."""
    from assets import tuning

    folder = tuning.basis(model, operator.registry())
    tuning.check_fits(operator.preset, folder)
    with operator.workspace.lock(f"tune-{operator.preset_name}"):  # what it is trained on from and by is the preset's, until it is done
        return _tuned(operator, folder, prepare)


def _tuned(operator: Any, folder: Path, prepare: Callable[[], dict[str, Any]] | None) -> dict[str, Any]:
    from assets import tuning
    from diffsfsr.presets import TUNED

    prepared = prepare() if prepare else {}
    if prepared.get("faces") == 0:
        told = ", ".join(f"{reason} {n}" for reason, n in prepared["reasons"].items()) or "it has none"
        raise InputError(f"data set {prepared['data_sets'][0]}: no photograph shows a usable face ({told}); give --data another folder")
    start = tuning.begin(operator.workspace, operator.preset, folder, *prepared.get("data_sets", [])[:1])
    name = operator.preset_name
    following = f"`diffsfsr run evaluate --preset {name}`, `diffsfsr run promote --preset {name}`"
    return prepared | operator.train() | {"preset": name, "from": f"{TUNED[name]} {start.version[:8]}", "next": following}


def _check_start(args: Namespace) -> None:
    """Raises InputError for --from with anything but a training."""
    if args.start and args.job != "train":
        raise InputError(f"--from goes with `run train`, not with `run {args.job}`")


def _promoted(operator: Any, args: Namespace) -> Any:
    """The answer of `run promote`; a version that is refused ends in exit code 1."""
    answer = operator.rollback(args.why) if args.rollback else operator.promote(args.version, args.why, args.model)
    args.code = 0 if answer.get("promoted", True) else 1
    return answer


def _check_promotion(args: Namespace) -> None:
    """Raises InputError for a change of the champion that is none."""
    if args.job != "promote" and (args.rollback or args.version or args.why):
        raise InputError("--rollback, --version and --why go with `run promote`")
    if args.rollback and args.version:
        raise InputError("--rollback goes to the champion before this one, --version N to another: give one of them")
    if args.job == "promote" and (args.model not in ("trained", "shipped") or (args.version and args.model != "trained")):
        raise InputError(f"--model {args.model} goes with `run promote` as trained or shipped; --version N names one that is registered")
    if args.version < 0:
        raise InputError(f"--version {args.version} is no version: its number is 1 or more")


def _costs(preset: Any, as_json: bool) -> dict[str, Any]:
    """What the training would cost: data, or a table to read."""
    from pipelines import costs

    found = costs.estimate(preset)
    return {"cost": found if as_json else costs.table(found, preset.training)}


def _data_source(name: str) -> Path:
    """A folder of photographs or of videos, or a file that lists photographs."""

    places = [Path(name), *([Path(os.environ["DIFFSFSR_DATA"]) / name] if os.environ.get("DIFFSFSR_DATA") else [])]
    for place in places:
        if place.is_dir() or place.is_file():
            return place
    raise InputError(f"--data {name} is neither a folder of photographs or videos nor a list of their addresses (FEC's or Emo135's)")


def _fetched(listed: Path, operator: Any, name: str | None) -> tuple[Path, dict[str, int]]:
    """Fetch the pictures that a file lists; returns their folder and how many others are missing for which reason."""
    from diffsfsr.fetch import fetching, listing
    from pipelines.operate import safe_name

    folder = operator.workspace.fetched(name or safe_name(listed.stem))  # refuses a bad name before anything is fetched
    return folder, fetching.fetch(listing.read(listed), folder, operator.preset.data.max_pixels).missing


def _framed(source: Path, operator: Any, name: str | None) -> tuple[Path, dict[str, int]] | None:
    """Take frames of a folder of videos; returns their folder and how many videos gave none for which reason. None for photographs."""
    from diffsfsr.fetch import videos
    from pipelines.operate import safe_name

    if not videos.is_of_videos(source):
        return None
    folder = operator.workspace.fetched(name or safe_name(source.resolve().name))  # refuses a bad name before anything is decoded
    return folder, videos.take_frames(source, folder, max_pixels=operator.preset.data.max_pixels).missing
