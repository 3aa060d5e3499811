"""Tensors out of files that nobody vouches for. Of what torch.save pickled nothing is executed, inflated or taken on trust."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffsfsr.errors import InputError

_LARGEST_FILE = 500_000_000  # bytes; those of published face networks have about 100 million
_COUNTER = ".num_batches_tracked"  # of training only; files older than torch 0.4.1 lack it
_CHECK = "run `diffsfsr weights check`"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, in float32. Raises OSError, and ValueError, naming the file, where it is broken or holds anything
    but finite numbers."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: {error}") from error
    for name, part in found.items():
        if not part.is_floating_point() or not part.float().isfinite().all():
            raise ValueError(f"{path} holds what are no finite numbers in {name}")
    return {name: part.float().clone() for name, part in found.items()}  # what was loaded is the file itself, as long as that stands


def read_state(path: Path, want: Mapping[str, Tensor], network: str, ignored: Collection[str] = ()) -> dict[str, Tensor]:
    """The tensors of a state dict's file that `want` names, finite and of the same shapes; those of `ignored` are dropped.

    Real numbers may have any precision. Counters of batches are taken from `want` where they lack. Raises InputError, in a line with
    the file, the name of the network and the first key that does not fit, for anything else than that network's weights.
    """
    found = _load(Path(path), network)
    counters = {name: value for name, value in want.items() if name.endswith(_COUNTER)}
    state = counters | {name: value for name, value in found.items() if name not in ignored}
    shapes, wanted = ({name: tuple(value.shape) for name, value in tensors.items()} for tensors in (state, want))
    if wrong := sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name)):
        name = wrong[0]
        raise InputError(f"{path} is not {network}'s: {name} is {shapes.get(name, 'absent')} where {wanted.get(name, 'nothing')} belongs")
    for name, value in state.items():
        if not _is_plain(value) or value.is_floating_point() != want[name].is_floating_point():
            raise InputError(f"{path} is not {network}'s: {name} holds {value.dtype} where {want[name].dtype} belongs")
        if not value.isfinite().all():
            raise InputError(f"{path} is damaged: {name} holds values that are not finite; {_CHECK}")
    return state


def _is_plain(value: Tensor) -> bool:
    """Numbers that lie in memory one by one: neither complex nor quantised, sparse or without content."""
    return value.layout == torch.strided and value.device.type == "cpu" and not value.is_complex() and not value.is_quantized


def _load(path: Path, network: str) -> dict[str, Tensor]:
    if not path.is_file() or path.stat().st_size > _LARGEST_FILE:
        raise InputError(f"{path} is not a file of at most {_LARGEST_FILE} bytes, as {network}'s is: {_CHECK}")
    try:
        _refuse_compressed(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} holds something else than {network}'s tensors, which is not loaded: {_CHECK}") from error
    except Exception as error:  # torch stumbles over anything in a damaged file: struct.error, KeyError, UnicodeDecodeError, ...
        raise InputError(f"{path} cannot be read as {network}'s weights: {_CHECK}") from error
    if not isinstance(found, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()):
        raise InputError(f"{path} is not a state dict of {network}: {_CHECK}")
    return found


def _refuse_compressed(path: Path) -> None:
    """torch writes its zip files uncompressed, but reads others too, however large they become."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":  # older than torch 1.6: no zip
            return
    with zipfile.ZipFile(path) as archive:
        if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
            raise InputError(f"{path} is compressed, as no file of torch is, and not unpacked: {_CHECK}")
