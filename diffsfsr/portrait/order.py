"""An order for a portrait: what a person asked for, checked before anything is loaded."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from diffsfsr import emotions
from diffsfsr.errors import InputError, did_you_mean

TASKS = ("all", "identity", "expression")
SAMPLERS = ("", "pndm", "ddim", "dpm-solver++", "unipc")
MAX_STEPS, MAX_STRENGTH = 1000, 3.0


@dataclass(frozen=True)
class Order:
    """Selfies say who, the emotion word which expression, the scene (a photograph or a prompt) where.

    `task`: all changes identity and expression, identity keeps the scene's expression (and may go without a word), expression keeps its
    identity.
    `strength`: 0 keeps the scene's own expression, 1 gives the word's, beyond 1 exaggerates. `steps` 0 and `sampler` ''
    mean the model's own. `face`: which face of the scene, only | largest | its index from the left.
    """

    emotion: str
    selfies: tuple[str, ...] = ()
    scene: str = ""
    prompt: str = ""
    task: str = "all"
    strength: float = 1.0
    steps: int = 0
    sampler: str = ""
    seed: int = 0
    face: str = "only"

    def check(self) -> Self:
        """The order itself, its paths absolute. Raises InputError with one line for the first thing that is wrong."""
        if self.task not in TASKS:
            raise InputError(f"unknown task {self.task!r}{did_you_mean(self.task, TASKS)}; it is one of {', '.join(TASKS)}")
        if self.emotion:
            emotions.lookup(self.emotion)
        elif self.task != "identity":
            raise InputError(f"task {self.task} needs an emotion word: give --emotion WORD (`diffsfsr emotions` lists them)")
        if bool(self.scene) == bool(self.prompt):
            raise InputError("a portrait needs a scene: give either --scene FILE or --prompt TEXT")
        if not self.selfies and self.task != "expression":
            raise InputError(f"task {self.task} needs a selfie: give --selfie FILE")
        if self.sampler not in SAMPLERS:
            raise InputError(
                f"unknown sampler {self.sampler!r}{did_you_mean(self.sampler, SAMPLERS[1:])}; known: {', '.join(SAMPLERS[1:])}"
            )
        if not 0 <= self.steps <= MAX_STEPS:
            raise InputError(f"steps {self.steps} is not between 1 and {MAX_STEPS}")
        if not 0 <= self.strength <= MAX_STRENGTH:
            raise InputError(f"strength {self.strength} is not between 0 and {MAX_STRENGTH}")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed {self.seed} is not between 0 and 2^63 - 1")
        if self.face not in ("only", "largest") and not self.face.isdecimal():
            raise InputError(f"face {self.face!r} is not 'only', 'largest' or an index from the left")
        scene = str(file_of(self.scene, "scene")) if self.scene else ""
        return dataclasses.replace(self, selfies=tuple(str(file_of(s, "selfie")) for s in self.selfies), scene=scene)

    @classmethod
    def from_payload(cls, payload: dict[str, Any]) -> Order:
        """The inverse of `payload`. Raises InputError for unknown or missing fields."""
        if not isinstance(payload, dict):
            raise InputError(f"a request is a table of fields, not {payload!r}")
        known = {f.name for f in dataclasses.fields(cls)}
        for name in payload:
            if name not in known:
                raise InputError(f"unknown field {name!r} in a request{did_you_mean(name, known)}")
        try:
            given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in payload.items()}
            return cls(**given)
        except TypeError as error:
            raise InputError(f"a request is incomplete: {error}") from error

    def __post_init__(self) -> None:
        """Fields come from people's scripts too. Raises InputError for one of the wrong type."""
        if not isinstance(self.selfies, tuple) or not all(isinstance(s, str) for s in self.selfies):
            raise InputError(f"selfies must be a list of paths, not {self.selfies!r}")
        for name in ("emotion", "scene", "prompt", "task", "sampler", "face"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"{name} must be text, not {getattr(self, name)!r}")
        for name, kind in (("steps", int), ("seed", int), ("strength", int | float)):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), kind):
                raise InputError(f"{name} must be a number, not {getattr(self, name)!r}")

    def payload(self) -> dict[str, Any]:
        """Plain JSON data."""
        return dataclasses.asdict(self) | {"selfies": list(self.selfies)}

    def inputs(self) -> dict[str, str]:
        """Each file of the order with the sha256 of its bytes. Raises InputError where one has gone."""
        return {path: sha256_of(Path(path)) for path in (*self.selfies, self.scene) if path}

    def name(self, inputs: dict[str, str], model_version: str, expression: bytes = b"", absent: Iterable[str] = ()) -> str:
        """A portrait's name: a hash of everything it is made from, so that the same order twice is the same file.

        `expression` is the embedding that stands for the word now, and the one it is led away from where there is one; they may
        be others when the catalogue has grown.
        `absent` names the identity encoders that were not there.
        """
        wish = {k: v for k, v in self.payload().items() if k not in ("selfies", "scene")}
        parts = [sorted(wish.items()), [inputs[s] for s in self.selfies], inputs.get(self.scene, ""), model_version, expression]
        return hashlib.sha256(repr([*parts, *sorted(absent)]).encode()).hexdigest()[:20]


def file_of(path: str, what: str) -> Path:
    found = Path(path)
    if not found.is_file():
        raise InputError(f"{what} {path} is not a file: give the path of a photograph")
    return found.resolve()


def sha256_of(path: Path) -> str:
    try:
        with open(path, "rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
