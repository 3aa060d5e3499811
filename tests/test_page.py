"""The report's page with real pictures: read as text, and opened in a real browser at a phone's width."""

import base64
import html
import io
import re

import numpy as np
import pytest
from browser import CHROMIUM, opened
from PIL import Image
from synthetic import faces as aligned_faces

from diffsfsr.evaluation.baselines import RealPhoto, Untouched
from diffsfsr.evaluation.items import Faces, make_pairs
from diffsfsr.evaluation.outputs import Outputs
from diffsfsr.evaluation.protocols import MEASURED, Result
from diffsfsr.evaluation.report import figures
from diffsfsr.evaluation.report.numbers import report_of
from diffsfsr.evaluation.report.page import QUALITY, SIDE, page
from diffsfsr.evaluation.report.sections import sections

HOSTILE = '"><img src=x onerror="document.title=1"><script>alert(1)</script> & \'n'


@pytest.fixture(scope="module")
def faces(six_people):
    """Six people of one photograph; one has a hostile name, two an emotion."""
    found = aligned_faces(six_people, 64)
    ids = [HOSTILE if i == 0 else f"f{i}" for i in range(len(found))]
    labels = [{"emotion": "happy" if i % 2 else HOSTILE} for i in range(len(found))]
    return Faces(ids, ids, [face.crop for face in found], np.stack([face.crop_landmarks for face in found]), labels)


def _result(method, faces, task="all", n=24, seed=0):
    """A method's outputs, and figures made by hand: item i has the identity cosine i / n, the first two no face."""
    pairs = make_pairs(faces, ["test"] * len(faces.ids), task, n, 0)
    rng = np.random.default_rng(seed)
    rows = []
    for i, item in enumerate(pairs.items):
        found = i >= 2
        measured = {name: float(rng.uniform()) if found else None for name in MEASURED} | {"id_top1": float(found), "id_top5": float(found)}
        measured |= {"id_cosine": i / n if found else None, "expression_distance": 1 - i / n if found else None}
        ids = {role: faces.ids[getattr(item, role)] for role in ("scene", "identity", "expression")}
        head = {"method": method.name, "task": task, "item": i, "seed": pairs.seeds[i], "distinct": True, "found": found}
        rows.append({**head, **ids, "emotion": faces.label(item.expression, "emotion"), **measured})
    judges = {"identity": HOSTILE, "fid": "missing: the weights are not on this machine"}
    return Result(method.name, task, rows, judges, True, 6, outputs=Outputs(None, method, pairs, faces))


@pytest.fixture(scope="module")
def results(faces):
    ours = Untouched(faces)
    ours.name = "ours <b>"
    return [_result(ours, faces), _result(ours, faces, "reconstruct"), _result(RealPhoto(faces), faces, seed=1)]


@pytest.fixture(scope="module")
def text(results, faces):
    told = report_of(results, HOSTILE, {HOSTILE: HOSTILE, "data set": "six"})
    hostile = figures.Figure("x", HOSTILE, HOSTILE, [HOSTILE], [[figures.Shown(faces.crops[0], HOSTILE, HOSTILE)]])
    return page(HOSTILE, sections(told, [*figures.standard(results), hostile]))


# --- as text ------------------------------------------------------------------------------------------------------------


def test_the_worst_come_first(results, faces):
    shown = {figure.file: figure for figure in figures.worst(results[0], 3)}
    assert list(shown) == ["worst-failures-all", "worst-identity-all", "worst-expression-all"]
    captions = [row[-1].caption for row in shown["worst-identity-all"].rows]
    assert [float(re.search(r"ID\s([\d.]+)", caption)[1]) for caption in captions] == [0.08, 0.12, 0.17]  # items 2, 3, 4 of 24
    assert [row[-1].alt.split(", item ")[1].split(":")[0] for row in shown["worst-expression-all"].rows] == ["2", "3", "4"]
    assert "2 of 2" in shown["worst-failures-all"].note and shown["worst-failures-all"].rows[0][-1].caption == "no face found"


def test_a_grid_shows_what_every_method_was_given_and_made(results, faces):
    grid = figures.grid([results[0], results[2]])
    assert grid.columns == ["Scene", "Identity", "Expression", "ours <b>", "real-photo"] and len(grid.rows) == figures.FIRST
    item = results[0].outputs.pairs.items[3]
    given = [faces.crops[i] for i in (item.scene, item.identity, item.expression, item.scene)]
    assert all(np.array_equal(shown.picture, crop) for shown, crop in zip(grid.rows[3], given, strict=False))
    assert all(row[4].picture is None for row in grid.rows)  # nobody has a second photograph
    assert figures.grid([results[1]]).columns == ["Photograph", "ours <b>"]
    sheet = grid.sheet(64)
    assert (sheet[2 + 3 * 66 : 66 + 3 * 66, 2:66] == faces.crops[item.scene]).all()
    assert (sheet[30, 2 + 4 * 66 + 30] == 200).all()  # grey where there is no picture


def test_the_page_needs_no_other_and_escapes_names(text):
    assert "<script" not in text and 'onerror="' not in text and "ours <b>" not in text
    assert html.escape(HOSTILE) in text
    links = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert links and all(link.startswith(("data:image/jpeg;base64,", "#")) for link in links)
    names = set(re.findall(r'id="([^"]*)"', text))
    assert {link[1:] for link in links if link.startswith("#")} <= names
    assert "url(" not in text and "@import" not in text and "default-src 'none'" in text


def test_every_picture_is_a_thumbnail_with_words_in_its_stead(text):
    pictures = re.findall(r'<img alt="([^"]*)"[^>]*src="data:image/jpeg;base64,([^"]*)"', text)
    assert len(pictures) == len(re.findall("<img", text)) > 60 and all(alt.strip() for alt, _ in pictures)
    opened = [Image.open(io.BytesIO(base64.b64decode(data))) for _, data in pictures]
    assert all(picture.format == "JPEG" and max(picture.size) <= SIDE for picture in opened)


def test_the_page_is_bounded_and_says_its_size(faces, results):
    """The worst that pictures can be: noise, which no JPEG makes small."""
    rng = np.random.default_rng(0)
    noisy = Faces(faces.ids, faces.people, list(rng.integers(0, 256, (6, 512, 512, 3), np.uint8)), faces.landmarks * 8, faces.labels)
    noise = [_result(Untouched(noisy), noisy, n=24) for _ in range(2)]
    parts = sections(report_of(results, "t", {}), [*figures.worst(noise[0]), figures.grid([*noise, *noise, *noise])])
    made = page("t", parts)
    said = float(re.search(r"about ([\d.]+) MB", made)[1])
    assert said == pytest.approx(len(made) / 1e6, abs=0.06) and len(made) < 6_000_000 and QUALITY < 90


def test_tables_have_headers_and_captions(text):
    tables = re.findall(r"<table>.*?</table>", text, re.S)
    assert len(tables) > 6
    for table in tables:
        head, body = table.split("</thead>")
        assert "<caption>" in head and head.count('scope="col"') >= 3
        widths = {row.count("<td") + row.count("<th") for row in re.findall(r"<tr.*?</tr>", body, re.S)}
        assert len(widths) == 1 and widths.pop() == head.count('scope="col"')


# --- in a browser -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine to open the page with")
def test_a_browser_shows_every_picture_without_an_error_and_a_phone_needs_no_sideways_scroll(tmp_path, text):
    said, console = opened(tmp_path, text, 390)
    assert console == [] and said["wrong"] == []
    assert said["broken"] == 0 and said["pictures"] == len(re.findall("<img", text))
    assert said["width"] == 390 >= said["needs"] and said["scrolled"] > 0 and said["headings"] == 1
