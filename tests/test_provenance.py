"""Sidecars that are none, or not of the picture."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from diffsfsr.errors import InputError
from diffsfsr.portrait import provenance


@pytest.mark.parametrize("kind", ["pipe", "folder", "deep", "bare"])
def test_verify_of_a_sidecar_that_is_none(kind: str, tmp_path: Path) -> None:
    portrait = tmp_path / "portrait.png"
    portrait.write_bytes(b"a picture")
    sidecar = provenance.sidecar_path(portrait)
    if kind == "pipe":  # opened as a file, it would wait for a writer
        os.mkfifo(sidecar)
    elif kind == "folder":
        sidecar.mkdir()
    else:
        sidecar.write_text("[" * 10**5 if kind == "deep" else json.dumps({"sha256": hashlib.sha256(b"a picture").hexdigest()}))
    with pytest.raises(InputError, match="has no readable sidecar at portrait.png.json"):
        provenance.verify(portrait)


@pytest.mark.parametrize("inputs", [None, ["a"], {"a": ["b"]}, "a"])
def test_verify_of_a_record_without_its_inputs(inputs: object, tmp_path: Path) -> None:
    portrait = tmp_path / "portrait.png"
    portrait.write_bytes(b"a picture")
    told = {"sha256": hashlib.sha256(b"a picture").hexdigest(), "model_version": "1", "made_at": "now"}
    provenance.write(portrait, told | {"inputs_sha256": inputs})
    with pytest.raises(InputError, match="has no readable sidecar"):
        provenance.verify(portrait)
    provenance.write(portrait, told | {"inputs_sha256": {"selfie\udcff.jpg": "b"}})  # a name that is not UTF-8
    assert list(provenance.verify(portrait)["inputs_sha256"]) == ["selfie\udcff.jpg"]
