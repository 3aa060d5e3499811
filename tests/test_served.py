"""What is kept of requests: embeddings, found by version, and gone when they are to be forgotten."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from test_portraits import label, model, order, studio  # noqa: F401

from assets.portraits import Serving, fulfil
from assets.stores.catalogue import Catalogue
from assets.stores.served import DAYS, Served
from diffsfsr.portrait.compose import Studio
from diffsfsr.portrait.order import Order, sha256_of


@pytest.fixture
def serving(studio: Studio, tmp_path: Path) -> Serving:  # noqa: F811
    catalogue = Catalogue(tmp_path / "catalogue")
    label(catalogue, studio.dln.version, ["happiness", "neutral"])
    return Serving(studio, "1", catalogue, tmp_path / "portraits", Served(tmp_path / "served"))


def test_a_portrait_leaves_the_embeddings_of_its_faces_and_no_picture(serving: Serving, order: Order, studio: Studio) -> None:  # noqa: F811
    from diffsfsr.face.images import read

    sidecar, _ = fulfil(order, serving)
    fulfil(order, serving)  # again: the same record
    assert serving.served
    (file,) = serving.served.folder.iterdir()
    assert file.stem == Path(sidecar["portrait"]).stem and file.stat().st_size < 20_000
    found = serving.served.recent("1", 10)
    selfie, scene = (studio.face(read(Path(path)), "it") for path in (order.selfies[0], order.scene))
    np.testing.assert_allclose(found["id_dlib"], studio.embed_identity([selfie])["dlib"].numpy(), atol=1e-6)
    np.testing.assert_allclose(found["expression"], studio.embed_expression(scene).numpy(), atol=1e-6)
    assert serving.served.recent("2", 10) == {}
    assert serving.served.forget(photographs={sha256_of(Path(order.selfies[0]))}) == 1 and not list(serving.served.folder.iterdir())


def test_the_newest_come_first_and_old_ones_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(tmp_path)
    for i in range(4):
        monkeypatch.setattr(time, "time", lambda i=i: 1e9 + i)
        served.keep(f"p{i}", "1", {"id_dlib": (np.full(3, i), [f"sha{i}"])})
    assert served.recent("1", 2)["id_dlib"][:, 0].tolist() == [3, 2]
    monkeypatch.undo()
    old = time.time() - (DAYS + 1) * 86_400
    os.utime(tmp_path / "p3.parquet", (old, old))
    served.prune()
    assert served.recent("1", 9)["id_dlib"][:, 0].tolist() == [2, 1, 0]
    assert served.forget(portrait="p1") == 1 and served.forget(photographs={"sha0", "sha3"}) == 1
    assert served.recent("1", 9)["id_dlib"][:, 0].tolist() == [2]
