"""A travel: one person, one scene and one noise, while the expression moves from station to station; shown as a strip or a GIF."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffsfsr import emotions, tables
from diffsfsr.errors import InputError
from diffsfsr.portrait.order import Order, file_of, sha256_of

OWN = "scene"  # the station that is the scene's own expression
ENDINGS = (".png", ".gif")
MAX_FRAMES = 100
SIDE = 512  # pixels: the longer side of a frame, at most
_PACE = 120  # milliseconds a frame of a GIF


@dataclass(frozen=True)
class Travel(Order):
    """An order for `frames` pictures `through` two stations or more: emotion words, photographs of an expression, or "scene".

    `strength` holds for every station. The order's own emotion is not looked at.
    """

    emotion: str = "neutral"
    through: tuple[str, ...] = ()
    frames: int = 9

    def check(self) -> Travel:
        """As Order's."""
        if len(self.through) < 2:
            raise InputError(f"a travel goes through two stations or more, not {len(self.through)}: give --through twice")
        if not 2 <= self.frames <= MAX_FRAMES:
            raise InputError(f"frames {self.frames} is not between 2 and {MAX_FRAMES}")
        if self.frames < len(self.through):
            raise InputError(f"frames {self.frames} cannot show {len(self.through)} stations: give as many or more")
        if self.task == "identity":
            raise InputError("task identity keeps the scene's expression, so that nothing would travel: use all or expression")
        return dataclasses.replace(super().check(), through=tuple(_station(name) for name in self.through))

    def payload(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {k: v for k, v in super().payload().items() if k != "emotion"} | {"through": list(self.through)}

    def inputs(self) -> dict[str, str]:
        """As Order's, with the photographs among the stations."""
        return super().inputs() | {name: sha256_of(Path(name)) for name in self.through if is_photograph(name)}


def is_photograph(station: str) -> bool:
    """Whether a checked station is a photograph's path: those are absolute."""
    return Path(station).is_absolute()


def _station(name: str) -> str:
    """A station as it is named in an order that has been checked. Raises InputError for what is neither word nor photograph."""
    if name == OWN:
        return name
    if Path(name).suffix or Path(name).name != name:
        return str(file_of(name, "station"))
    try:
        return emotions.lookup(name).word  # a word, whatever files lie about
    except InputError as error:
        if Path(name).is_file():
            return str(file_of(name, "station"))
        raise InputError(f"--through: {error}; a photograph's path and {OWN!r} will do as well") from error


def strip(frames: Sequence[np.ndarray], words: dict[int, str]) -> np.ndarray:
    """HWC uint8 frames of one size side by side as one picture, words (frame -> text) beneath."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = frames[0].shape[:2]
    size = max(10, height // 16)
    sheet = Image.new("RGB", (width * len(frames), height + 2 * size), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size)
    for i, frame in enumerate(frames):
        sheet.paste(Image.fromarray(frame), (i * width, 0))
        if i in words:
            draw.text((i * width + width // 2, height + size), _fitting(words[i], width, font), "black", font, anchor="mm")
    return np.asarray(sheet)


def _fitting(text: str, width: int, font: Any) -> str:
    """As much of a text as `width` pixels hold."""
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-1]
    return text


def write(path: Path, frames: Sequence[np.ndarray], words: dict[int, str]) -> str:
    """Writes a strip or a GIF that goes on for ever, by the ending; a reader sees all of it or nothing.

    Returns the sha256 of the bytes."""
    from PIL import Image

    from diffsfsr.face.images import write_image

    if path.suffix.lower() == ".png":
        return write_image(path, strip(frames, words))
    first, *others = (Image.fromarray(frame) for frame in frames)
    moving: dict[str, Any] = {"format": "GIF", "save_all": True, "append_images": others, "duration": _PACE, "loop": 0}
    content = io.BytesIO()
    first.save(content, **moving)
    tables.write_whole(path, lambda beside: beside.write_bytes(content.getvalue()))
    return hashlib.sha256(content.getvalue()).hexdigest()
