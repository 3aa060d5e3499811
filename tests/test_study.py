"""The page of a human study in a real browser, and its answers read back: simulated people whose opinion is known."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffsfsr.errors import InputError, NotReady
from diffsfsr.evaluation.items import Faces, Item, PairList, Picture
from diffsfsr.evaluation.study import answers
from diffsfsr.evaluation.study.page import QUESTIONS, REAL, WRONG, key_of, write_study
from diffsfsr.evaluation.study.results import markdown, study_report
from diffsfsr.face.images import decode

METHODS = ("DiffSFSR", "SimSwap", "E4S")
PEOPLE = 12
COLUMNS = ["study", "participant", "picture", "place", "at", "seconds", *(q.name for q in QUESTIONS)]


class Painted:
    """A method whose picture of item i is one colour; of some items it makes nothing."""

    def __init__(self, number: int, nothing: tuple[int, ...] = ()) -> None:
        self.number, self.nothing = number, nothing

    def picture(self, i: int) -> Picture | None:
        return None if i in self.nothing else np.full((32, 32, 3), (40 * self.number, 10 * i, 99), np.uint8)


FACES = Faces(
    [f"f{i}" for i in range(PEOPLE)],
    [f"p{i}" for i in range(PEOPLE)],
    [np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8) for i in range(PEOPLE)],
    np.zeros((PEOPLE, 68, 2)),
)
PAIRS = PairList("all", [Item(i, (i + 1) % PEOPLE, (i + 2) % PEOPLE) for i in range(PEOPLE)], list(range(PEOPLE)), "some pairs")


def written(folder: Path, seed: int = 0, count: int = 6, **nothing: tuple[int, ...]) -> Path:
    outputs = {name: Painted(i, nothing.get(name, ())) for i, name in enumerate(METHODS)}
    write_study(folder / "study.html", outputs, PAIRS, FACES, ours="DiffSFSR", count=count, seed=seed)
    return folder / "study.html"


def key_data(page: Path) -> dict[str, Any]:
    return json.loads(key_of(page).read_text())


def told(page: Path) -> dict[str, Any]:
    """What the page is told."""
    found = re.search(r'id="data">(.*?)</script>', page.read_text(), re.S)
    assert found
    return json.loads(found[1])


def pixels(source: str) -> Picture:
    return decode(base64.b64decode(source.removeprefix("data:image/jpeg;base64,")))


# --- what is written ------------------------------------------------------------------------------------------------------


def test_the_page_names_no_method_and_needs_no_other_file(tmp_path: Path) -> None:
    text = re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", written(tmp_path).read_text())
    for word in (*METHODS, "our method", "baseline", REAL, WRONG, "http:", "https:", "@import", "<link", "<script src"):
        assert word.lower() not in text.lower(), word


def test_no_place_in_the_page_tells_a_method(tmp_path: Path) -> None:
    first = []
    for seed in range(4):
        page = written(tmp_path / str(seed), seed)
        owners, data = key_data(page)["pictures"], told(page)
        assert list(data["pictures"]) == sorted(owners)
        first += [owners[item["pictures"][0]]["whose"] for item in data["items"]]
    assert all(3 <= first.count(method) <= 15 for method in METHODS)  # of 24, each a third less the checks


def test_each_token_is_the_picture_that_the_key_says(tmp_path: Path) -> None:
    page = written(tmp_path)
    owners, data = key_data(page)["pictures"], told(page)
    kinds = [owner["whose"] for owner in owners.values()]
    assert [kinds.count(kind) for kind in (*METHODS, REAL, WRONG)] == [6, 6, 6, 2, 1]
    for item in data["items"]:
        index = owners[item["pictures"][0]]["item"]
        for role in ("identity", "expression"):
            wanted = FACES.crops[getattr(PAIRS.items[index], role)]
            assert np.abs(pixels(data["references"][item[role]]).astype(int) - wanted).mean() < 8  # noise costs a JPEG most
        for token in item["pictures"]:
            shown, whose = pixels(data["pictures"][token]), owners[token]["whose"]
            if whose in METHODS:
                assert np.abs(shown.mean(axis=(0, 1)) - (40 * METHODS.index(whose), 10 * index, 99)).max() < 2
            elif whose == REAL:
                assert data["pictures"][token] == data["references"][item["identity"]]
            else:  # the scene's pixels at other places
                scene = FACES.crops[PAIRS.items[index].scene]
                assert np.abs(shown.astype(int) - scene).mean() > 40
                assert np.abs(np.sort(shown.ravel()).astype(int) - np.sort(scene.ravel())).mean() < 8


def test_an_item_of_which_a_method_made_nothing_is_passed_over_and_counted(tmp_path: Path) -> None:
    page = written(tmp_path, count=10, E4S=(3, 7))
    assert key_data(page)["made_nothing"] == {"DiffSFSR": 0, "SimSwap": 0, "E4S": 2}
    assert {3, 7}.isdisjoint(owner["item"] for owner in key_data(page)["pictures"].values())
    with pytest.raises(NotReady, match="only 10 of 12 have all pictures .E4S made nothing of 2."):
        written(tmp_path, count=11, E4S=(3, 7))
    with pytest.raises(InputError, match="one of these"):
        write_study(page, {"SimSwap": Painted(1)}, PAIRS, FACES, ours="DiffSFSR")


def test_the_same_study_is_the_same_page_and_another_seed_another(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    a, b, c = (written(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert a.read_bytes() == b.read_bytes() and told(a)["id"] != told(c)["id"]


# --- in a browser ---------------------------------------------------------------------------------------------------------

# Answers each picture by keys, as a participant would; then leaves what the page would save in the document.
DRIVER = """<script>
const press = key => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
const log = {resumed: !!state, began: state && state.at, links: []};
HTMLAnchorElement.prototype.click = function () { log.links.push([this.href.slice(0, 5), this.download]); };
if (!state) { document.getElementById("code").value = "PARTICIPANT"; document.querySelector("form").requestSubmit(); }
for (let n = 0; n < LIMIT && document.getElementById("next"); n++) {
  log.early = document.getElementById("next").disabled;
  for (const key of ["y", "n", "5", "4", "3", "2"]) press(key);
  press("Enter");
}
if (document.getElementById("next")) press("y");  // the next picture is left half answered
log.order = trials(state.participant).map(t => t.picture);
log.others = ["p1", "p2", "p3"].map(p => trials(p).map(t => t.picture));
log.wide = document.documentElement.scrollWidth - window.innerWidth;
log.json = asJson();
log.csv = asCsv();
document.getElementById("json")?.click();
addEventListener("load", () => {
  log.images = [...document.images].map(image => image.naturalWidth);
  const out = document.createElement("pre");
  out.id = "log";
  out.textContent = btoa(JSON.stringify(log));
  document.body.append(out);
});
</script></body>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no Chromium here to open the page in")
    return found


def driven(browser: str, page: Path, profile: Path, participant: str = "w1", limit: int = 1000, width: int = 390) -> dict[str, Any]:
    """What DRIVER logged. A profile that is used again is a browser that was closed and opened again."""
    copy = page.with_name("driven.html")
    driver = DRIVER.replace("PARTICIPANT", participant).replace("LIMIT", str(limit))
    copy.write_text(page.read_text().replace("</body>", driver))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={profile}"]
    flags += [f"--window-size={width},900", "--dump-dom", copy.as_uri()]
    ran = subprocess.run([browser, *flags], capture_output=True, text=True, timeout=120)
    assert ":CONSOLE" not in ran.stderr, ran.stderr
    found = re.search(r'<pre id="log">(.*?)</pre>', ran.stdout)
    assert found, ran.stderr[-2000:]
    return json.loads(base64.b64decode(found[1]))


def test_a_participant_answers_by_keys_and_what_is_saved_is_read_back(browser: str, tmp_path: Path) -> None:
    page = written(tmp_path)
    log = driven(browser, page, tmp_path / "profile")
    assert log["wide"] <= 0 and log["early"]
    assert log["links"] == [["blob:", f"answers-{told(page)['id']}-w1.json"]]
    (tmp_path / "a.json").write_text(log["json"])
    (tmp_path / "a.csv").write_bytes(log["csv"].encode())
    key = answers.read_key(key_of(page))
    by_json, by_csv = (answers.read_answers([tmp_path / name], key) for name in ("a.json", "a.csv"))
    assert {a.picture for a in by_json.answers.values()} == set(key.owners)
    assert {frozenset(a.values.items()) for a in by_json.answers.values()} == {
        frozenset({"identity_yes": 1, "expression_yes": 0, "identity": 5, "expression": 4, "realism": 3, "quality": 2}.items())
    }
    assert by_csv.answers == by_json.answers and not by_json.notes


def test_a_closed_page_goes_on_where_it_was(browser: str, tmp_path: Path) -> None:
    page = written(tmp_path)
    first = driven(browser, page, tmp_path / "profile", limit=4)
    second = driven(browser, page, tmp_path / "profile", participant="somebody else")
    assert not first["resumed"] and second["resumed"] and second["began"] == 4
    *whole, half = json.loads(first["json"])["answers"]
    assert [half[q.name] for q in QUESTIONS] == ["yes", *[None] * (len(QUESTIONS) - 1)]
    assert json.loads(second["json"])["participant"] == "w1"
    assert len(whole) == 4 and json.loads(second["json"])["answers"][:4] == whole
    (tmp_path / "half.json").write_text(first["json"])
    reading = answers.read_answers([tmp_path / "half.json"], answers.read_key(key_of(page)))
    assert reading.lines["read"] == 5 and reading.lines["damaged"] == 0
    assert [len(a.values) for a in reading.answers.values()] == [len(QUESTIONS)] * 4 + [1]


def test_each_participant_has_an_order_of_their_own_item_by_item(browser: str, tmp_path: Path) -> None:
    page = written(tmp_path)
    log = driven(browser, page, tmp_path / "profile", limit=1, width=1280)
    assert log["images"] == [32, 32, 32]
    owners = key_data(page)["pictures"]
    orders = [log["order"], *log["others"]]
    assert len({tuple(order) for order in orders}) == 4 and all(sorted(order) == sorted(owners) for order in orders)
    for order in orders:
        items = [owners[token]["item"] for token in order]
        assert sum(a != b for a, b in zip(items, items[1:], strict=False)) == 5  # one item after the other
    first = [owners[order[0]]["item"] for order in orders]
    assert len(set(first)) > 1
    ranks = {
        tuple(owners[t]["whose"] for t in order if owners[t]["item"] == i and not owners[t]["check"]) for order in orders for i in first
    }
    assert len(ranks) > 2  # and the methods within an item


# --- answers read back ----------------------------------------------------------------------------------------------------


Opinion = Callable[[str, int, str], float]  # (method or check, item, question) -> the answer, 1 to 5 or 1 for yes


def answered(page: Path, participant: str, opinion: Opinion, pictures: int | None = None) -> dict[str, Any]:
    """A participant's file of answers."""
    key, rows = key_data(page), []
    for place, (token, owner) in enumerate(list(key["pictures"].items())[:pictures]):
        row: dict[str, Any] = {"picture": token, "place": place, "at": f"2026-01-01T00:00:{place:02}Z", "seconds": 3.5}
        for q in QUESTIONS:
            value = opinion(owner["whose"], owner["item"], q.name)
            row[q.name] = ("yes" if value else "no") if q.kind == "yes" else int(value)
        rows.append(row)
    return {"study": key["study"], "participant": participant, "started": "2026-01-01T00:00:00Z", "answers": rows}


def saved(path: Path, data: dict[str, Any]) -> Path:
    """As JSON or CSV by the name."""
    if path.suffix == ".json":
        path.write_text(json.dumps(data))
        return path
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS)
    writer.writeheader()
    writer.writerows({"study": data["study"], "participant": data["participant"], **row} for row in data["answers"])
    path.write_text(out.getvalue())
    return path


def flat_opinion(whose: str, item: int, question: str) -> float:
    """Ours is a 4, SimSwap a 3, E4S a 2; yes above 2; attentive."""
    if whose == WRONG:
        return 1 if question == "realism" else 0 if question.endswith("_yes") else 1
    mark = {"DiffSFSR": 4, "SimSwap": 3, "E4S": 2, REAL: 5}[whose]
    return mark > 2 if question.endswith("_yes") else mark


def person(seed: int, gaps: dict[str, float]) -> Opinion:
    """Somebody with a level of their own and noise, to whom methods differ by `gaps`."""
    rng = np.random.default_rng(seed)
    level = rng.normal(3, 0.8)

    def opinion(whose: str, item: int, question: str) -> float:
        if whose in (REAL, WRONG):
            return flat_opinion(whose, item, question)
        mark = float(np.clip(round(level + gaps.get(whose, 0.0) + rng.normal(0, 0.7)), 1, 5))
        return mark >= 3 if question.endswith("_yes") else mark

    return opinion


def test_figures_are_those_of_the_answers(tmp_path: Path) -> None:
    page = written(tmp_path)
    marks = {("a", 0): 4, ("a", 1): 2, ("b", 0): 5, ("b", 1): 3}

    def opinion(who: str) -> Opinion:
        def said(whose: str, item: int, question: str) -> float:
            if whose != "DiffSFSR":
                return flat_opinion(whose, item, question)
            mark = marks[who, item % 2]
            return mark >= 4 if question.endswith("_yes") else mark

        return said

    files = [saved(tmp_path / f"{who}.{kind}", answered(page, who, opinion(who))) for who, kind in (("a", "json"), ("b", "csv"))]
    report = study_report(files, key_of(page))
    items = sorted({o["item"] for o in key_data(page)["pictures"].values()})
    given = [marks[who, i % 2] for who in "ab" for i in items]
    ours = report["methods"]["DiffSFSR"]
    assert ours["identity"]["mean"] == pytest.approx(np.mean(given)) and ours["identity"]["count"] == 12
    assert ours["identity"]["variance"] == pytest.approx(np.var(given, ddof=1))
    shares = [100.0 if i % 2 == 0 else 0.0 for i in items]
    assert ours["identity_yes"]["mean"] == pytest.approx(np.mean(shares))
    assert ours["identity_yes"]["variance"] == pytest.approx(np.var(np.array(shares) / 100, ddof=1) * 100)
    assert report["methods"]["E4S"]["expression_yes"]["mean"] == 0.0 and report["methods"]["SimSwap"]["expression_yes"]["mean"] == 100.0
    gap = report["pairwise"]["realism"]["E4S"]
    assert gap["difference"] == pytest.approx(np.mean(given) - 2)
    assert report["participants"] == {"all": 2, "partial": 0, "failed a check": 0, "counted": 2}
    assert "NaN" not in json.dumps(report)


def test_a_planted_difference_is_found_and_only_that(tmp_path: Path) -> None:
    page = written(tmp_path)
    files = [saved(tmp_path / f"{n}.json", answered(page, f"w{n}", person(n, {"E4S": -0.8}))) for n in range(30)]
    report = study_report(files, key_of(page))
    for question in ("identity", "expression", "realism", "quality"):
        worse, alike = report["pairwise"][question]["E4S"], report["pairwise"][question]["SimSwap"]
        assert worse["repeated_holm"] < 0.001 and worse["repeated_p"] <= worse["repeated_holm"] and 0.5 < worse["difference"] < 1.1
        assert alike["repeated_holm"] > 0.05 and abs(alike["difference"]) < 0.3
        assert report["anova"][question]["repeated"]["p"] < report["anova"][question]["one_way"]["p"]  # people's levels are no noise
    table = [pair for pairs in report["pairwise"].values() for pair in pairs.values()]
    least = min(table, key=lambda pair: pair["repeated_p"])
    assert len(table) == 12 and least["repeated_holm"] == pytest.approx(12 * least["repeated_p"])
    text = markdown(report)
    assert "p < 0.001 (< 0.001)" in text and "participants: all 30, partial 0, failed a check 0, counted 30" in text
    assert text.count("\n| DiffSFSR |") == 2


def test_under_the_null_one_in_twenty_is_called_significant(tmp_path: Path) -> None:
    """As the report tests: participants with levels of their own, methods alike."""
    from diffsfsr.evaluation.study.results import _tests

    rng, n = np.random.default_rng(0), 500
    found = []
    for _ in range(n):
        marks = 3 + rng.normal(0, 0.8, (20, 1, 1)) + rng.normal(0, 1, (20, 5, 3))
        found.append(_tests(np.clip(marks.round(), 1, 5))["repeated"].p)
    share = np.mean(np.array(found) < 0.05)
    assert abs(share - 0.05) < 3 * np.sqrt(0.05 * 0.95 / n)


def test_damaged_foreign_repeated_and_partial_files_are_counted_each(tmp_path: Path) -> None:
    page = written(tmp_path)
    good = answered(page, "good", flat_opinion)
    other = good | {"study": "another"}
    changed = json.loads(json.dumps(good))
    changed["answers"][0] |= {"quality": 1, "at": "2026-01-02T00:00:00Z"}
    broken = json.loads(json.dumps(answered(page, "broken", flat_opinion)))
    broken["answers"][0]["quality"] = 6
    broken["answers"][1]["identity_yes"] = "perhaps"
    broken["answers"][2]["picture"] = "nobody's"
    broken["answers"][3] = "no answer"
    del broken["answers"][4]["realism"]  # where a check of attention may ask
    files = [saved(tmp_path / name, data) for name, data in (("good.json", good), ("again.csv", good), ("changed.json", changed))]
    files += [saved(tmp_path / "other.csv", other), saved(tmp_path / "broken.json", broken)]
    files += [saved(tmp_path / "part.csv", answered(page, "part", flat_opinion, pictures=7))]
    texts = {"empty.json": "", "cut.json": json.dumps(good)[:-300], "list.json": "[1, 2]", "deep.json": '{"a":' + "[" * 100_000}
    texts |= {"binary.csv": "\0\0", "nothing.json": json.dumps(good | {"answers": []}), "table.csv": "a,b\n1,2\n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        files.append(tmp_path / name)
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00\x81")
    report = study_report([*files, tmp_path / "bytes.csv", tmp_path / "absent.json"], key_of(page))
    total = len(key_data(page)["pictures"])
    assert report["files"] == {"read": 5, "damaged": 9, "foreign": 1}
    assert report["lines"] == {"read": 4 * total - 5 + 7, "damaged": 4, "unknown picture": 1, "repeated": 2 * total - 1, "replaced": 1}
    assert report["participants"] == {"all": 3, "partial": 2, "failed a check": 0, "counted": 3}
    assert any("another study" in note for note in report["notes"]) and all("\n" not in note for note in report["notes"])
    token = good["answers"][0]["picture"]
    key = answers.read_key(key_of(page))
    assert answers.read_answers(files, key).answers["good", token].values["quality"] == 1  # the latest counts, whatever the order
    assert answers.read_answers(files[::-1], key).answers["good", token].values["quality"] == 1


def test_lines_of_another_study_in_one_table_are_left_out(tmp_path: Path) -> None:
    page = written(tmp_path)
    file = saved(tmp_path / "a.csv", answered(page, "a", flat_opinion))
    strange = saved(tmp_path / "b.csv", answered(page, "b", flat_opinion) | {"study": "another"})
    file.write_text(file.read_text() + "".join(strange.read_text().splitlines(keepends=True)[1:4]))
    report = study_report([file], key_of(page))
    assert report["participants"]["all"] == 1 and report["lines"]["damaged"] == 3


def test_a_table_that_a_spreadsheet_saved_again_is_read(tmp_path: Path) -> None:
    page = written(tmp_path)
    file = saved(tmp_path / "a.csv", answered(page, "a", flat_opinion))
    file.write_bytes(b"\xef\xbb\xbf" + re.sub(r",(\d)(?=,|\r)", r",\1.0", file.read_text()).replace(",", ";").encode())
    report = study_report([file], key_of(page))
    assert report["lines"]["damaged"] == 0 and report["methods"]["SimSwap"]["quality"]["mean"] == 3.0


@pytest.mark.parametrize(("check", "question", "value"), [(REAL, "identity_yes", 0), (WRONG, "realism", 4)])
def test_who_misses_a_check_is_left_out(tmp_path: Path, check: str, question: str, value: int) -> None:
    page = written(tmp_path)

    def asleep(whose: str, item: int, asked: str) -> float:
        return (
            value
            if (whose, asked) == (check, question)
            else 5
            if not asked.endswith("_yes") and whose in METHODS
            else flat_opinion(whose, item, asked)
        )

    files = [saved(tmp_path / "a.json", answered(page, "a", flat_opinion)), saved(tmp_path / "z.json", answered(page, "z", asleep))]
    report = study_report(files, key_of(page))
    assert report["participants"] == {"all": 2, "partial": 0, "failed a check": 1, "counted": 1}
    assert report["methods"]["E4S"]["realism"] == {"mean": 2.0, "low": None, "high": None, "variance": 0.0, "count": 6}
    with pytest.raises(InputError, match="every participant missed a check"):
        study_report(files[1:], key_of(page))


def test_one_participant_has_means_and_no_test_over_participants(tmp_path: Path) -> None:
    page = written(tmp_path)
    report = study_report([saved(tmp_path / "a.json", answered(page, "a", flat_opinion))], key_of(page))
    assert report["methods"]["SimSwap"]["quality"]["mean"] == 3.0
    assert report["anova"]["quality"]["repeated"]["p"] is None and report["pairwise"]["quality"]["E4S"]["repeated_holm"] is None
    assert "| - |" in markdown(report)


def test_the_key_is_found_by_the_study_and_a_wrong_one_refused(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    pages = [written(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 2))]
    file = saved(tmp_path / "x.json", answered(pages[1], "w", flat_opinion))
    assert answers.find_key([file], [tmp_path / "a", tmp_path / "b"]) == key_of(pages[1]).resolve()
    with pytest.raises(InputError, match="no key of study"):
        answers.find_key([file], [tmp_path / "a"])
    with pytest.raises(InputError, match="no answer to study .* of another study"):
        study_report([file], key_of(pages[0]))
    with pytest.raises(InputError, match="is not the key of a study"):
        answers.read_key(file)
    (tmp_path / "b" / "a server's.key.json").write_text('{"private": "of another program"}')
    assert answers.find_key([file], [tmp_path / "b"]) == key_of(pages[1]).resolve()


@pytest.mark.parametrize(
    "damage",
    [
        {"ours": "nobody"},
        {"made_nothing": [1]},
        {"made_nothing": None},
        {"methods": "ours"},
        {"pictures": {"a": {"whose": "SimSwap", "item": float("inf")}}},
    ],
)
def test_a_key_that_was_changed_is_none(tmp_path: Path, damage: dict[str, Any]) -> None:
    page = written(tmp_path)
    key_of(page).write_text(json.dumps(key_data(page) | damage))
    with pytest.raises(InputError, match="is not the key of a study"):
        answers.read_key(key_of(page))


def test_the_key_of_another_study_is_not_lost(tmp_path: Path) -> None:
    """The answers to a page that is out can be read as long as its key is there."""
    first = written(tmp_path).read_bytes(), key_of(written(tmp_path)).read_bytes()  # the same study again is no other one
    with pytest.raises(InputError, match="study.key.json is there already, of study .*: give --out another name"):
        written(tmp_path, seed=1)
    assert (key_of(tmp_path / "study.html").read_bytes(), (tmp_path / "study.html").read_bytes()) == first[::-1]


def test_a_table_whose_columns_were_renamed_is_not_read_as_if_questions_were_left_open(tmp_path: Path) -> None:
    """Else a check of attention would go with its column: who fails it would count."""
    head = ["study", "participant", "picture", "identity_yes", "expression_yes", "identity", "expression", "realizm", "quality"]
    (tmp_path / "answers.csv").write_text(",".join(head) + "\ns,p,t,yes,yes,5,5,5,5\n", encoding="utf-8")
    key = answers.Key("s", "all", "ours", ("ours",), {"t": ("ours", 0)}, {})
    reading = answers.read_answers([tmp_path / "answers.csv"], key)
    assert reading.files["damaged"] == 1 and not reading.answers
    assert "without the column realism (did you mean realizm?)" in reading.notes[0]
