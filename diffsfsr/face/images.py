"""Files and pictures: the only place that decodes, converts, resizes and writes them.

A picture is HWC uint8 RGB everywhere outside the networks. Whatever a person or a camera can put into a folder either
decodes to that or raises `Rejected` with a reason; no hostile file may crash the run, hang it, or fill the memory.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import secrets
import stat
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from diffsfsr.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

REASONS = ("unreadable", "no face", "several faces", "too small", "too turned", "too large", "cut off", "duplicate")

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
SUFFIXES |= {".heic", ".heif", ".avif", ".jp2", ".ppm", ".pgm", ".pbm"}

# Raster formats only: Pillow hands PostScript to an interpreter, and its rarer readers have had the least care.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"})
_MAX_PIXELS = 100_000_000
MAX_BYTES = 200_000_000  # of a file; a larger one is not read
# Encoders write one to a dozen. Every scan goes over the whole picture, whatever few bytes it has: of so many, a hundred million pixels
# take half a minute, and a file of a megabyte could hold a hundred thousand. libtiff refuses more than that in its own JPEGs, too.
_MAX_SCANS = 100
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")  # of a JPEG: one with a segment behind it, or the end
_END, _SCAN = b"\xd9", b"\xda"
_BITS_PER_SAMPLE = 258  # TIFF 6.0, section 8


class Rejected(Exception):
    """A picture that cannot be used: `reason` is one of REASONS, `detail` is one line for a person."""

    def __init__(self, reason: str, detail: str = "") -> None:
        if reason not in REASONS:
            raise ValueError(f"unknown reason {reason!r}; known: {', '.join(REASONS)}")
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:
        return Rejected, (self.reason, self.detail)  # so that it crosses process borders whole


def is_image_name(path: str | os.PathLike[str]) -> bool:
    """Whether the suffix is one of SUFFIXES, in any case. Says nothing about the content."""
    return Path(path).suffix.lower() in SUFFIXES


# --- decoding -------------------------------------------------------------------------------------------------------


def read(path: str | os.PathLike[str], max_pixels: int = _MAX_PIXELS) -> np.ndarray:
    """The picture in a file as HWC uint8 RGB, upright.

    Only regular files are opened (symbolic links to one are followed), and none above 200 MB. Raises Rejected("unreadable") for
    anything that is not a picture or cannot be read, Rejected("too large") by the size in the header.
    """
    return decode(_read_bytes(path), max_pixels)


def _read_bytes(path: str | os.PathLike[str]) -> bytes:
    try:
        _require_regular(os.stat(path))
        # Non-blocking, and checked again once open: the name may have become a pipe in between.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        with os.fdopen(descriptor, "rb") as file:
            _require_regular(os.fstat(descriptor))
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        known = {errno.ELOOP: "its symbolic links form a loop", errno.EACCES: "permission denied", errno.ENOENT: "no such file"}
        raise Rejected("unreadable", known.get(error.errno or 0, error.strerror or str(error)).lower()) from error
    except ValueError as error:  # a name with a null byte
        raise Rejected("unreadable", str(error)) from error
    _require_size(len(data))
    return data


def _require_regular(status: os.stat_result) -> None:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    if not stat.S_ISREG(status.st_mode):
        raise Rejected("unreadable", f"{kinds.get(stat.S_IFMT(status.st_mode), 'a device')}, not a regular file")
    _require_size(status.st_size)


def _require_size(length: int) -> None:
    if length > MAX_BYTES:
        raise Rejected("too large", f"the file is larger than {MAX_BYTES // 1_000_000} MB")


def decode(data: bytes, max_pixels: int = _MAX_PIXELS) -> np.ndarray:
    """An encoded picture as HWC uint8 RGB, upright by its EXIF orientation; of an animation, the first frame.

    Deeper samples are scaled to eight bits, and transparency is laid on white. The size is taken from the header before any
    pixel is decoded. Raises Rejected("too large") above `max_pixels` or a hundred scans, Rejected("unreadable") for whatever cannot
    be decoded.
    """
    if not data:
        raise Rejected("unreadable", "the file is empty")
    # By a filter on Pillow's own modules, because catch_warnings is not safe between threads.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        image = _open(data)
        width, height = image.size
        if width * height > max_pixels:
            raise Rejected("too large", f"{width} x {height} pixels, more than {max_pixels:,}")
        if data.startswith(b"\xff\xd8") and _has_too_many_scans(data):
            raise Rejected("too large", f"a JPEG of more than {_MAX_SCANS} scans: save it anew")
        return _to_rgb8(_upright(image.to_pillow() if hasattr(image, "to_pillow") else image))
    except Rejected:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise Rejected("too large", _one_line(error)) from error
    except Image.UnidentifiedImageError as error:
        raise Rejected("unreadable", f"not a picture in a format read here ({', '.join(_FORMATS)}, HEIC)") from error
    except Exception as error:  # decoders raise whatever they stumble over: struct.error, SyntaxError, KeyError, ...
        raise Rejected("unreadable", _one_line(error)) from error


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def _open(data: bytes) -> Any:
    """A lazily decoded picture, only its header read: Pillow's, or pillow_heif's where the brand asks for it."""
    if not _is_heif(data):
        Image.init()  # or Pillow knows only some of its own readers
        return Image.open(io.BytesIO(data), formats=[name for name in _FORMATS if name in Image.OPEN])
    try:
        import pillow_heif
    except ImportError as error:
        raise Rejected("unreadable", "a HEIC picture; install pillow-heif or save it as JPEG") from error
    return pillow_heif.open_heif(io.BytesIO(data))


def _has_too_many_scans(jpeg: bytes) -> bool:
    """By its segments (ITU-T T.81, B.1.1.4): each a marker and a length, and behind that of a scan coded data without markers."""
    scans, at = 0, 2
    while scans <= _MAX_SCANS and (marker := _MARKER.search(jpeg, at)) and marker[1] != _END:
        scans += marker[1] == _SCAN
        at = marker.end() + int.from_bytes(jpeg[marker.end() : marker.end() + 2], "big")
    return scans > _MAX_SCANS


def _is_heif(data: bytes) -> bool:
    """By the file type box (ISO/IEC 14496-12, 4.3): major brand, then compatible brands; AVIF is left to Pillow."""
    if data[4:8] != b"ftyp":
        return False
    box = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
    brands = {box[i : i + 4] for i in range(0, len(box), 4)}
    return bool(brands & _HEIF_BRANDS) and not brands & {b"avif", b"avis"}


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # a damaged EXIF block does not make the picture unreadable
        pass
    return image


def _to_rgb8(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        grey = _scale_to_8_bits(np.asarray(image), _full_scale(image))
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _full_scale(image: Image.Image) -> float | None:
    """The largest value that a sample can take, where the file says so."""
    if image.mode == "F":
        return None
    if image.format == "TIFF":
        return 2.0 ** int(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0]) - 1
    return 65535.0


def _scale_to_8_bits(samples: np.ndarray, full: float | None) -> np.ndarray:
    values = np.nan_to_num(samples.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    if full is None:  # floats name no scale: take the smallest customary one that holds them
        full = next((f for f in (1.0, 255.0, 65535.0) if values.max(initial=0.0) <= f), float(values.max(initial=1.0)))
    return np.clip(np.rint(values * (255.0 / full)), 0, 255).astype(np.uint8)


# --- conversion -----------------------------------------------------------------------------------------------------


def to_tensor(images: np.ndarray) -> Tensor:
    """HWC or NHWC uint8 RGB -> (B, 3, H, W) float32 in [-1, 1]; 0 is -1 and 255 is 1 exactly."""
    import torch

    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[-1] != 3:
        raise ValueError(f"expected HWC or NHWC uint8 RGB, not {images.dtype} {images.shape}")
    batch = torch.from_numpy(np.ascontiguousarray((images if images.ndim == 4 else images[None]).transpose(0, 3, 1, 2)))
    return batch.to(torch.float32).div_(127.5).sub_(1)


def to_uint8(t: Tensor) -> np.ndarray:
    """(B, 3, H, W) or (3, H, W) in [-1, 1], clamped and rounded -> NHWC uint8 RGB; inverse of `to_tensor`."""
    import torch

    batch = t.detach() if t.ndim == 4 else t.detach()[None]
    values = ((batch.to(torch.float32) + 1) * 127.5).round().clamp(0, 255)
    return values.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def to_bgr(image: np.ndarray) -> np.ndarray:
    """RGB <-> BGR on the last axis, contiguous."""
    return np.ascontiguousarray(image[..., ::-1])


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """HWC uint8 RGB to (height, width), Lanczos, antialiased where it shrinks."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image.copy()
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


# --- writing --------------------------------------------------------------------------------------------------------


def encode_png(image: np.ndarray) -> bytes:
    """HWC uint8 RGB as the bytes of a PNG file, without metadata.

    Filters leave long runs in a photograph: run lengths alone make it as small as Pillow's search for repeats, five times as fast.
    """
    import cv2

    options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    return cv2.imencode(".png", to_bgr(image), options)[1].tobytes()


def encode_jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    """HWC uint8 RGB as the bytes of a JPEG file without metadata, its colour at full resolution."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def write_image(path: str | os.PathLike[str], image: np.ndarray) -> str:
    """Write HWC uint8 RGB to `path` in the format of its suffix (.png, .jpg, .webp); a reader sees all of it or nothing.

    Returns the sha256 of the bytes. PNG and WebP are lossless. Raises InputError for another suffix.
    """
    path = Path(path)
    options: dict[str, dict[str, Any]] = {
        ".png": {"format": "PNG"},
        ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
        ".webp": {"format": "WEBP", "lossless": True},
    }
    options[".jpeg"] = options[".jpg"]
    if path.suffix.lower() not in options:
        raise InputError(f"{path}: pictures are written as .png, .jpg or .webp; change the suffix")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.parent / f".{secrets.token_hex(8)}.part"
    try:
        with open(beside, "xb") as file:
            Image.fromarray(image).save(file, **options[path.suffix.lower()])
            file.flush()
            os.fsync(file.fileno())
        with open(beside, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.replace(beside, path)
        return digest
    finally:
        beside.unlink(missing_ok=True)


def contact_sheet(rows: list[list[np.ndarray]], cell: int = 96) -> np.ndarray:
    """Rows of HWC uint8 pictures as one grid picture: each fitted into a `cell` pixels square, white between them."""
    gap = max(1, cell // 32)
    step = cell + gap
    height, width = (max(n, 1) * step + gap for n in (len(rows), max((len(r) for r in rows), default=0)))
    sheet = np.full((height, width, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            rgb = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
            scale = cell / max(rgb.shape[:2])
            h, w = (max(1, round(side * scale)) for side in rgb.shape[:2])
            top, left = gap + i * step + (cell - h) // 2, gap + j * step + (cell - w) // 2
            sheet[top : top + h, left : left + w] = resize(rgb, (h, w))
    return sheet
