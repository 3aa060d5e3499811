"""The model card of a shipped model, in the form that Hugging Face reads: YAML at the head, then what a person should know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffsfsr import config, presets, weights
from diffsfsr.config import Preset
from diffsfsr.evaluation.report.columns import BY_NAME, COLUMNS, TITLES

SHOWN = (  # of all that is measured
    *("id_top1", "id_cosine", "id_ratio", "expression_distance", "smile_correlation", "jaw_correlation"),
    *("pose_error", "seam", "failure_rate"),
)
NAMED = {
    "output": "portraits, %",
    "reference": "their references, %",
    "ratio_reference": "portraits over references",
    "photograph": "labelled photographs, %",
    "ratio": "portraits over photographs",
}
_REMARKS = {  # data set -> its licence and the consent of those it shows
    "lfw": "Labeled Faces in the Wild, deep-funneled: press photographs collected for research. They are NOT openly licensed, and the "
    "people in them were not asked. The expression labels are by others (Apache-2.0) and noisy.",
    "congress": "Portraits of members of the US Congress and presidents, by their collectors largely in the public domain or from "
    "government sources, which was not checked photograph by photograph. The people in them were not asked.",
    "portraits": "Portrait photographs whose collection claims CC0 for all of them, which was not checked photograph by photograph. It "
    "asks that nobody be shown in a bad light. The people in them were not asked.",
}
_UNKNOWN = "Its licence, and whether the people in it agreed, was not recorded."
_TAGS = ["diffusers", "face-generation", "personalization", "facial-expression", "identity", "dln"]


@dataclass(frozen=True)
class Facts:
    """What a card tells: the preset of the model, its data set -> (faces, people) that trained it, label -> number of its words,
    what evaluations measured (data set -> task -> metric -> {mean, low, high, count}), how often a classifier names the family asked for
    (data set -> `classifier`, `<word>_output`, ... -> the same), and what somebody saw by eye."""

    preset: Preset
    trained_on: Mapping[str, tuple[int, int]]
    words: Mapping[str, int]
    measured: Mapping[str, Mapping[str, Any]]
    named: Mapping[str, Mapping[str, Any]]
    own: tuple[str, ...] = ()  # those data sets that this very training read, where it went on from another model of this project
    finished_by: str = ""  # the preset by which its decoder was trained once more, on all of them
    by_eye: str = ""


def card(facts: Facts) -> str:
    """README.md of the folder."""
    return f"---\n{_head(facts)}\n---\n\n{_body(facts)}"


def _head(facts: Facts) -> str:
    from huggingface_hub import ModelCardData

    name = f"DiffSFSR {facts.preset.name}"
    return ModelCardData(
        license="other",
        license_name="research-use",
        license_link="README.md#licence-and-consent",
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=_TAGS,
        model_name=name,
        eval_results=list(_results(facts)),
    ).to_yaml()


def _results(facts: Facts) -> Iterator[Any]:
    """One entry a figure; its interval stands in its name, since the form has no place for one."""
    from huggingface_hub import EvalResult

    for dataset, task, metric, entry in _figures(facts):
        yield EvalResult(
            task_type="image-to-image",
            task_name=TITLES.get(task, task),
            dataset_type=dataset,
            dataset_name=f"{dataset}, people held out",
            dataset_config=task,
            metric_type=metric,
            metric_name=f"{BY_NAME[metric].title} (95 % interval {entry['low']:.4g} to {entry['high']:.4g}, n = {entry['count']})",
            metric_value=float(f"{entry['mean']:.4g}"),
        )


def _figures(facts: Facts) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """(data set, task, metric, entry) of every figure that could be computed."""
    for dataset, tasks in facts.measured.items():
        for task, columns in tasks.items():
            for column in COLUMNS:
                entry = columns.get(column.name)
                if isinstance(entry, Mapping) and entry.get("mean") is not None:
                    yield dataset, task, column.name, entry


def _body(facts: Facts) -> str:
    sections = (
        (f"DiffSFSR `{facts.preset.name}`", _about(facts)),
        ("Intended use", _USE),
        ("Misuse", _MISUSE),
        ("How good it is", tables(facts.measured, facts.named)),
        ("Known failures", "\n\n".join(filter(None, (_FAILURES.format(yaw=facts.preset.data.max_yaw), facts.by_eye.strip())))),
        ("Data", _data(facts)),
        ("Licence and consent", _licence(facts.preset)),
        ("How it was made", _made(facts)),
    )
    return "\n".join(f"{'#' if i == 0 else '##'} {title}\n\n{text}\n" for i, (title, text) in enumerate(sections))


def _about(facts: Facts) -> str:
    p, start = facts.preset, "on from another model of this project" if facts.own else "from nothing"
    words = ", ".join(f"{label} {count}" for label, count in facts.words.items())
    return (
        f"A selfie says who, an emotion word which expression, a photograph where: the portrait keeps the identity, shows the expression "
        f"and leaves every pixel outside the face as it was. A latent diffusion model for aligned faces of {p.crop} x {p.crop} pixels by "
        f"the method of *DiffSFSR* (CVPR 2024), told who by {', '.join(p.conditioning.identity)} and which expression by a "
        f"{p.dln.dim}-dimensional expression encoder (DLN). It is not the authors' model: it was trained {start} by this project.\n\n"
        f"The folder holds the networks in float16 (they are used in float32 on a CPU), and in `words.parquet` {sum(facts.words.values())} "
        f"expression embeddings with their labels ({words}), by which the 135 emotion words are looked up: no pictures, no names, faces of "
        f"the training split alone. A label's examples are the faces that look most like it to the encoder, of surprise those that do most "
        f"of what it does to a face; labels of which the data has too few faces are left out where another of its family can stand for it. "
        f"The encoder's frozen twin is the published network it "
        f"began as, and is read from that file. `glasses.safetensors`, where there is one, holds what glasses do to an "
        f"identity's embedding, by which they are taken off, and a scene's are found and painted over (`sampling.without_glasses`), "
        f"and `brows.safetensors` where embeddings say that brows are, above which the painted region begins (`sampling.own_brows`).\n\n"
        f"    diffsfsr portrait --selfie me.jpg --scene holiday.jpg --emotion amusement --out portrait.png"
    )


_USE = (
    "To try the method offline in seconds, to start from when fine-tuning on photographs of one's own (`diffsfsr run train --from starter "
    "--data DIR`), and for research on the control of identity and expression. Make portraits of people who agreed to it. Finished "
    "portraits say in their record that they are synthetic: let whoever sees them know."
)
_MISUSE = (
    "Not for deceiving anybody, not for showing people who did not agree, or in a light that they would not choose; not for identifying, "
    "verifying or profiling people, and not for reading what anybody feels: an expression is not a feeling, and its labels are guesses."
)
_FAILURES = (
    "- Details are those of a small picture: a face that is large in its scene looks softer than what is around it.\n"
    "- Profiles and strongly turned or tilted heads (it saw none beyond {yaw:.0f} degrees), glasses, hands, hair or microphones before the "
    "face, and open mouths with teeth come out worst.\n"
    "- The identity is a likeness, not a double: with one selfie a friend may not recognise the person.\n"
    "- Rare expressions are learned from few and noisy labels. Words that the data does not show, as most of the 135, are shown as the "
    "nearest that it does.\n"
    "- Its faces are mostly of adults, of public figures photographed by the press, more men than women, most of them light-skinned: it "
    "can be expected to be worse for everybody else."
)


def tables(measured: Mapping[str, Any], named: Mapping[str, Any]) -> str:
    """A table a data set: a row a task, a column a metric, each with its 95 % interval; and one of words where they were `named`."""
    parts = [
        "Measured on people held out from training, by networks that judge only where the judges' line says so. Each figure is a mean "
        "with its 95 % bootstrap interval over items.",
    ]
    for dataset, tasks in measured.items():
        head = ["task", "items", *(BY_NAME[name].title for name in SHOWN)]
        rows = [_row(task, columns) for task, columns in tasks.items()]
        parts.append(f"### {dataset}\n\n{_table([head, ['---'] * len(head), *rows])}")
        parts.append(judged(next(iter(tasks.values()))))
    parts += [_words(dataset, found) for dataset, found in named.items()]
    return "\n\n".join(parts)


def _words(dataset: str, found: Mapping[str, Any]) -> str:
    """A row a word: how often its portraits are taken for its family, beside photographs with a label of it."""
    kinds = [kind for kind in NAMED if any(_cell(found.get(f"{name}_{kind}")) != "-" for name in words_of(found))]
    rows = [[name, *(_cell(found.get(f"{name}_{kind}")) for kind in kinds)] for name in words_of(found)]
    head = ["word", *(NAMED[kind] for kind in kinds)]
    return (
        f"### {dataset}, by word\n\n{_table([head, ['---'] * len(head), *rows])}\n\n"
        f"How often {found['classifier']} takes a portrait for the family of the word that was asked for, beside photographs with a label "
        "of that word (those whose expression stood for it, where they are at hand, and all of the data set): it learned from none, it "
        "errs, and labels are noisy."
    )


def words_of(found: Mapping[str, Any]) -> list[str]:
    """The words that a classifier was asked about, and their mean last."""
    return [key.removesuffix("_output") for key in found if key.endswith("_output")]


def judged(columns: Mapping[str, Any]) -> str:
    """Who judged a task's figures, and among how many photographs."""
    told = ", ".join(f"{role} by {name}" for role, name in columns.get("judges", {}).items() if not name.startswith("missing"))
    chance = columns.get("chance_top1")
    among = f" Top-1 is among {columns['gallery']} photographs (chance {chance:.2g} %)." if chance else ""
    return f"Judges: {told}.{among}"


def _row(task: str, columns: Mapping[str, Any]) -> list[str]:
    return [TITLES.get(task, task), str(columns["items"]), *(_cell(columns.get(name)) for name in SHOWN)]


def _cell(entry: Any) -> str:
    if not isinstance(entry, Mapping) or entry.get("mean") is None:
        return "-"
    return f"{entry['mean']:.3g} [{entry['low']:.3g}, {entry['high']:.3g}]"


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _data(facts: Facts) -> str:
    lines = [
        f"- **{name}**, {faces} faces of {people} people. {_REMARKS.get(name, _UNKNOWN)}"
        for name, (faces, people) in facts.trained_on.items()
    ]
    return "Trained on, the people held out not counted:\n\n" + "\n".join(lines)


def _licence(p: Preset) -> str:
    used = [f"{name} ({weights.ZOO[name].licence})" for name in weights.used_by(p, judged=False)]
    return (
        "The code is Apache-2.0. The weights learned from the photographs above, some of which are not openly licensed: use them for "
        "research and evaluation, not in a product; for that, train on photographs whose people agreed, with the same commands. "
        f"Published networks behind it, each with terms of its own: {'; '.join(used)}."
    )


def _made(facts: Facts) -> str:
    p, last = facts.preset, facts.finished_by or facts.preset.name
    changed = "".join(f" --set '{key}={value}'" for key, value in _changes(p).items())
    prepared = [f"    diffsfsr run prepare --preset {p.name} --data {name}" for name in facts.own or facts.trained_on]
    on_from = f"{presets.TUNED.get(p.name, p.name)} --from MODEL" if facts.own else p.name
    train = [f"train --preset {on_from}", *([f"train --preset {facts.finished_by} --from MODEL"] if facts.finished_by else [])]
    measure = [f"evaluate --preset {last}", *([f"evaluate --preset {last} --words"] if facts.named else [])]
    after = [f"    diffsfsr run {job}{changed}" for job in (*train, *measure)]
    images = p.training.batch * p.training.accumulation * p.training.processes
    experts = "are those of the model it was trained on from" if facts.own else "are trained before it by the same command"
    finished = " Last, the autoencoder's decoder learned to finish what the diffusion model makes." if facts.finished_by else ""
    return (
        "\n".join([*prepared, *after, f"    diffsfsr export --preset {last}{' --notes FILE' if facts.by_eye else ''}"])
        + f"\n\n{p.training.steps} steps of {images} images for the diffusion model, whose preset with every setting is in `preset.json`; "
        f"the autoencoder and the expression encoder {experts}.{finished}"
    )


def _changes(p: Preset) -> dict[str, str]:
    """The settings in which a preset differs from the row of its name, as --set takes them."""
    import json

    row = presets.PRESETS.get(p.name)
    own, rows = _flat(config.to_dict(p)), _flat(config.to_dict(row)) if row else {}
    ignored = ("evaluation.", "sampling.")
    return {key: json.dumps(value) for key, value in own.items() if row and rows.get(key) != value and not key.startswith(ignored)}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found
