"""The report on results made by hand: numbers, tables in the paper's form, and files that survive strange text and a crash."""

import json
import re

import numpy as np
import pytest

from diffsfsr import tables
from diffsfsr.emotions import WORDS
from diffsfsr.errors import NotReady
from diffsfsr.evaluation import metrics
from diffsfsr.evaluation.protocols import ITEMS, MEASURED, Result
from diffsfsr.evaluation.report import files, numbers, quoted, words
from diffsfsr.evaluation.report.columns import BY_NAME, COLUMNS
from diffsfsr.evaluation.report.overview import write_overview
from diffsfsr.evaluation.report.sections import _said, in_order, sections, table_1, table_3
from diffsfsr.evaluation.report.sheets import markdown, number, written

JUDGES = {"identity": "reid0095 (independent of the model; weights aaa)", "expression": "dln (weights bbb)", "pose": "pnp (weights ccc)"}
FLATTERED = JUDGES | {"identity": "dlib (NOT independent: it conditions or trains the model, which flatters identity; weights ddd)"}


def _result(
    task="all", n=40, gallery=8, seed=0, failed=(3,), better=0.0, method="ours", emotions=("happy",), judges=JUDGES, **fields
) -> Result:
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        found = i not in failed
        values = {
            "id_rank": float(rng.integers(1, 8)),
            "id_cosine": float(rng.normal(0.3, 0.1)) + better,
            "expression_distance": float(rng.uniform(0, 1)),
            "pose_error": float(rng.uniform(0, 9)),
            "smile": 0.25,
            "smile_wanted": 1.0,
        }
        hits = {f"id_top{k}": float(found and values["id_rank"] <= k) for k in (1, 5)}
        ids = {"scene": f"s{i}", "identity": f"i{i}", "expression": f"e{i}", "emotion": emotions[i % len(emotions)]}
        measured = {name: values.get(name) if found else None for name in MEASURED} | hits
        rows.append({"method": method, "task": task, **ids, "item": i, "seed": i, "distinct": i != 0, "found": found, **measured})
    return Result(method=method, task=task, rows=rows, judges=judges, independent=judges is JUDGES, gallery=gallery, **fields)


def _text(results, title="Evaluation", facts=None):
    return markdown(title, sections(numbers.report_of(results, title, facts or {})))


# --- numbers ------------------------------------------------------------------------------------------------------------


def test_summary_by_hand():
    result = _result(fid=12.5)
    got = numbers.summary([result])["all"]
    top1 = [row["id_top1"] for row in result.rows]
    assert got["id_top1"]["mean"] == pytest.approx(100 * sum(top1) / 40) and got["id_top1"]["count"] == 40
    distances = [row["expression_distance"] for row in result.rows if row["found"]]
    assert got["expression_distance"]["mean"] == pytest.approx(100 * sum(distances) / 39) and got["expression_distance"]["count"] == 39
    want = metrics.bootstrap_interval(result.column("pose_error"), seed=0)
    assert (got["pose_error"]["low"], got["pose_error"]["high"]) == (want.low, want.high)
    assert got["failure_rate"]["mean"] == pytest.approx(2.5) and got["chance_top1"] == 12.5
    assert got["smile_gap"]["mean"] == pytest.approx(0.75) and got["smile_gap"]["count"] == 39
    assert got["mse"] == {"mean": None, "low": None, "high": None, "count": 0}  # missing, not zero
    assert got["items"] == 40 and got["not_distinct"] == 1 and got["judge"] == JUDGES["identity"] and got["fid"] == 12.5


def _spread(result, names, seed):
    """The same result with values of its own in those columns."""
    rng = np.random.default_rng(seed)
    wanted = rng.uniform(size=len(result.rows))
    for row, x in zip(result.rows, wanted, strict=True):
        if row["found"]:
            row |= dict(zip(names, (0.2 + 0.5 * x + rng.normal(0, 0.05), x), strict=True))
    return result


def test_correlation_and_ratio_are_statistics_of_all_items_with_intervals():
    result = _spread(_result(n=200), ("smile", "smile_wanted"), 1)
    for row in result.rows:
        row["id_scene_cosine"] = None if row["id_cosine"] is None else 0.1
    got = numbers.summary([result])["all"]
    shown = np.array([[row["smile"], row["smile_wanted"]] for row in result.rows if row["found"]]).T
    r, n = np.corrcoef(shown)[0, 1], 199
    assert got["smile_correlation"]["mean"] == pytest.approx(r) and got["smile_correlation"]["count"] == n
    fisher = [np.tanh(np.arctanh(r) + side * 1.96 / np.sqrt(n - 3)) for side in (-1, 1)]
    assert [got["smile_correlation"][side] for side in ("low", "high")] == pytest.approx(fisher, abs=0.02)
    assert got["jaw_correlation"] == {"mean": None, "low": None, "high": None, "count": 0}  # nothing was measured
    assert got["id_ratio"]["mean"] == pytest.approx(got["id_cosine"]["mean"] / 0.1)
    assert got["id_ratio"]["low"] == pytest.approx(got["id_cosine"]["low"] / 0.1, rel=0.02)
    for row in result.rows:
        row["id_scene_cosine"] = -0.05
    assert numbers.summary([result])["all"]["id_ratio"]["mean"] == pytest.approx(got["id_cosine"]["mean"] / 0.01)
    assert numbers.summary([_result("reconstruct")])["reconstruct"]["id_ratio"]["mean"] is None


def test_two_correlations_are_compared_on_the_same_items():
    old, new = (_spread(_result(n=200), ("smile", "smile_wanted"), 1) for _ in range(2))
    assert numbers.compare(new, old)["smile_correlation"]["mean"] == 0 and numbers.compare(new, old)["smile_correlation"]["better"] is None
    for row in new.rows:
        row["smile"] = row["smile_wanted"]
    gap = numbers.compare(new, old)["smile_correlation"]
    assert gap["mean"] == pytest.approx(1 - numbers.summary([old])["all"]["smile_correlation"]["mean"]) and gap["better"] is True


def test_a_summary_with_nothing_found_is_still_json():
    told = numbers.summary([_result(n=3, failed=(0, 1, 2))])
    assert json.loads(json.dumps(told, allow_nan=False))["all"]["id_cosine"]["mean"] is None
    assert told["all"]["failure_rate"]["mean"] == 100


def test_a_metric_is_counted_only_where_its_task_gives_it_meaning():
    """In reenactment the scene's person is the one wanted: likeness to them is no fault."""
    rows = [row | {"id_scene_cosine": 0.5} for row in _result().rows]
    same = {
        task: numbers.summary([_result(task).__class__(**{**vars(_result(task)), "rows": rows})])[task] for task in ("all", "expression")
    }
    assert same["all"]["id_scene_cosine"]["mean"] == 0.5 and same["expression"]["id_scene_cosine"]["mean"] is None


def test_compare_is_paired_and_knows_which_way_is_better():
    old, new = _result(), _result(better=0.01)
    got = numbers.compare(new, old)
    assert got["id_cosine"]["mean"] == pytest.approx(0.01) and got["id_cosine"]["better"] is True
    assert numbers.compare(old, new)["id_cosine"]["better"] is False
    assert got["pose_error"]["better"] is None and got["pose_error"]["mean"] == 0
    worse = _result(failed=range(20))
    assert numbers.compare(worse, old)["failure_rate"]["better"] is False
    for other in (_result(n=39), _result(judges=FLATTERED), _result(task="identity")):
        with pytest.raises(ValueError, match="same items"):
            numbers.compare(new, other)


def test_a_person_with_one_photograph_is_no_failure_of_the_ceiling():
    told = numbers.report_of(
        [_result(failed=(0,)), _result(method="real-photo", failed=range(1, 40, 2)), _result(method="else", failed=(5,))], "t", {}
    )
    methods = told["methods"]["all"]
    assert methods["real-photo"]["items"] == 20 and methods["real-photo"]["failure_rate"]["mean"] == 0
    assert methods["else"]["items"] == 40 and methods["else"]["failure_rate"]["mean"] == 2.5
    assert told["differences"]["all"]["real-photo"]["id_top1"]["count"] == 20  # on the items that both have
    assert "20 items" in markdown("t", sections(told))


def test_distances_of_two_networks_are_not_subtracted():
    other = _result(seed=1, judges=JUDGES | {"expression": "dln (weights other)"})
    got = numbers.compare(_result(), other)
    assert got["expression_distance"]["mean"] is None and got["expression_distance"]["better"] is None
    assert got["pose_error"]["mean"] is not None


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        got = metrics.bootstrap_interval(rng.normal(0.3, 1.0, 60), n=400, seed=trial)
        hits += got.low <= 0.3 <= got.high
    assert 180 <= hits <= 199  # 95 % of 200 is 190


# --- by word ------------------------------------------------------------------------------------------------------------


def test_every_word_stands_under_its_family_with_what_serves_it():
    emotions = ["happy"] * 3 + ["disgust"] * 2 + ["neutral"] + ["", "mask"]
    rows = words.branches(emotions)
    by_name = {(row.level, row.name): row for row in rows}
    assert sum(row.level == "word" for row in rows) == len(WORDS)
    assert by_name["word", "happiness"][2:] == ("exact", ("happy",), (0, 1, 2))
    assert by_name["word", "glee"][2:] == ("cluster", ("happy",), (0, 1, 2))
    assert by_name["word", "love"].how == "family"  # love and joy stand for each other
    assert by_name["word", "revulsion"].items == (3, 4) and by_name["cluster", "Disgust"].items == (3, 4)
    assert (
        by_name["family", "Anger"].items == (3, 4) and by_name["family", "Joy"].items == (0, 1, 2) and by_name["family", "Love"].items == ()
    )
    assert by_name["word", "terror"][2:] == ("", (), ())
    assert by_name["family", "Neutral"].items == (5,)
    families = [row.items for row in rows if row.level == "family"]
    assert sorted(sum(families, ())) == list(range(6))  # each labelled item once, what is no word nowhere
    assert words.branches(["", ""]) == []


def test_figures_of_a_word_are_those_of_its_items():
    result = _result(emotions=("happy", "sad", ""))
    rows = {row["name"]: row for row in numbers.by_word(result) if row["level"] == "word"}
    own = [row["expression_distance"] for row in result.rows if row["emotion"] == "sad" and row["found"]]
    assert rows["sadness"]["expression_distance"]["mean"] == pytest.approx(100 * np.mean(own)) and rows["sadness"]["items"] == 13
    assert rows["woe"]["pose_error"] == rows["sadness"]["pose_error"] and rows["woe"]["how"] == "cluster"
    assert rows["terror"]["items"] == 0 and "pose_error" not in rows["terror"]


# --- the paper's tables -------------------------------------------------------------------------------------------------


def test_the_paper_is_quoted_as_printed():
    """A sample of each block, by hand from the paper; and that each table is whole."""
    rows = {(q.table, q.task, q.data, q.method): q[4:] for q in quoted.QUOTED}
    assert len(rows) == len(quoted.QUOTED) == 2 * 10 + 4
    assert rows["Table 1", "all", "CelebA-HQ", quoted.OURS] == (90.2, 0.55, 6.00, None)
    assert rows["Table 1", "identity", "FF++", "FaceShifter"] == (95.4, 1.10, 1.62, None)
    assert rows["Table 1", "expression", "CelebA-HQ", "StyleHEAT"] == (98.2, 2.43, None, None)
    assert rows["Table 3", "all", "CelebA-HQ", "full model"] == (87.0, 0.63, 7.36, 51.23)
    assert quoted.TABLE_2["E4S"]["expression"] == (2.72, "p<0.001") and quoted.TABLE_2[quoted.OURS]["realism"].mean == 3.72


def test_table_1_keeps_the_papers_form_with_ours_in_columns_of_its_own():
    results = [_result(), _result(method="simswap", seed=2), _result(method="untouched", seed=3), _result(method="real-photo", seed=4)]
    told = numbers.report_of(results, "t", {"data set": "lfw"})
    sheet = table_1({"lfw": told["methods"]}, "ours")
    assert sheet.groups == [("", 1), ("CelebA-HQ, quoted", 3), ("FF++, quoted", 3), ("lfw, measured here", 3)]
    assert {len(line.cells) for line in sheet.lines} == {10} == {len(sheet.header)} == {sum(span for _, span in sheet.groups)}
    assert [line.cells[0] for line in sheet.lines if line.kind == "part"] == ["Swap expression", "Swap identity", "Swap all"]
    last = sheet.lines[-6:]
    assert [line.kind for line in last] == ["quoted", "quoted", "bound", "ours", "", "bound"]
    assert list(last[1].cells[:7]) == [f"{quoted.OURS} (quoted)", "90.2", "0.55", "6.00", "90.7", "0.73", "5.19"]
    assert list(last[1].cells[7:]) == ["-"] * 3 and list(last[3].cells[1:7]) == ["-"] * 6
    assert last[3].cells[7] == told["tasks"]["all"]["id_top1"]
    assert in_order(["b", "untouched", "a", "ours", "real-photo"], "ours") == ["real-photo", "ours", "a", "b", "untouched"]


def test_table_3_stands_under_the_papers():
    told = numbers.report_of([_result(), _result("reconstruct")], "t", {})
    sheet = table_3({"full model": told["tasks"], "without slot 3": {"all": told["tasks"]["all"]}})
    assert [line.kind for line in sheet.lines] == ["quoted"] * 4 + ["ours", ""]
    assert list(sheet.lines[2].cells) == ["without identity embedding 2 (quoted)", "37.9", "0.56", "7.90", "52.98"]
    assert sheet.lines[4].cells[4] == told["tasks"]["reconstruct"]["mse"] and sheet.lines[5].cells[4] == "-"


def test_the_text_says_who_judged_and_what_failed():
    results = [_result(), _result("expression", judges=FLATTERED), _result(method="untouched", failed=())]
    text = _text(results, facts={"model": "v3"})
    assert "NOT independent" in text and "identity counts as wrong" in text and "12.5 % of 8" in text and "swap all 1" in text
    row = next(line for line in text.splitlines() if line.startswith("| ours "))
    mean = numbers.summary(results[:1])["all"]["id_top1"]
    assert written(mean) in row and f"{number(mean['low'])}, {number(mean['high'])}" in row
    assert "- model: v3" in text and "floor: the scene untouched" in text and "weights bbb" in text
    assert all(line.split("|")[-2].strip() for line in text.splitlines() if line.startswith("| ours "))
    assert quoted.PAPER_PROTOCOL[2].split(".")[0] in text and "not measured here" in text


@pytest.mark.parametrize(
    ("value", "shown"), [(51.234, "51.2"), (0.0551, "0.0551"), (1234.5, "1234"), (0.0, "0"), (None, "-"), (-3.456, "-3.46")]
)
def test_numbers_have_three_digits(value, shown):
    assert number(value) == shown


# --- files --------------------------------------------------------------------------------------------------------------

HOSTILE = '<script>alert(1)</script> & "quotes" \'n |pipes|\n# heading [x](javascript:y)'


def test_hostile_text_stays_text(tmp_path):
    results = [_result(method=HOSTILE), _result(method=HOSTILE + "2", emotions=(HOSTILE,))]
    files.write_report(tmp_path, results, HOSTILE, {HOSTILE: HOSTILE, "data set": HOSTILE})
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html and "&lt;script&gt;alert(1)" in html
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)<script", text) and "\n# heading" not in text and not re.search(r"(?<!\\)\[x", text)
    assert json.loads((tmp_path / "report.json").read_text())["title"] == HOSTILE
    blocks = [block.splitlines() for block in re.split(r"\n\s*\n", text) if block.lstrip().startswith("| ")]
    assert blocks and all(len({len(re.findall(r"(?<!\\)\|", line)) for line in block}) == 1 for block in blocks)  # no name opens a cell


def test_files_are_whole_and_can_be_compared_again(tmp_path):
    results = [_result(), _result("reconstruct", gallery=5), _result(method="untouched", seed=5)]
    returned = files.write_report(tmp_path / "deep" / "report", results, "Evaluation", {"steps": 20})
    folder = tmp_path / "deep" / "report"
    assert sorted(p.name for p in folder.iterdir()) == ["items.parquet", "report.html", "report.json", "report.md"]
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(returned, allow_nan=False))
    stored = tables.read(folder / "items.parquet")
    assert stored.schema.names == ITEMS.names and stored.to_pylist() == [row for r in results for row in r.rows]
    again = files.read_results(folder)
    assert list(again) == ["all", "reconstruct"] and again["all"].rows == results[0].rows and again["all"].method == "ours"
    assert numbers.compare(again["all"], results[0])["id_cosine"]["mean"] == 0
    assert returned["differences"]["all"]["untouched"] == numbers.compare(results[0], results[2])


def test_a_crash_leaves_no_report_that_looks_complete(tmp_path, monkeypatch):
    files.write_report(tmp_path, [_result()])
    monkeypatch.setattr(tables, "write", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        files.write_report(tmp_path, [_result()], "second")
    assert not (tmp_path / "report.json").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    with pytest.raises(NotReady, match="run evaluate"):
        files.read_results(tmp_path)


def test_nothing_evaluated_is_a_report_too(tmp_path):
    files.write_report(tmp_path, [], "nothing")
    assert json.loads((tmp_path / "report.json").read_text())["tasks"] == {}
    assert len(tables.read(tmp_path / "items.parquet")) == 0


def test_an_overview_is_table_1_over_all_reports_of_a_model(tmp_path):
    for task, data in (("all", "lfw"), ("identity", "lfw"), ("all", "other")):
        files.write_report(tmp_path / f"{data}-{task}", [_result(task, seed=len(task)), _result("reconstruct")], facts={"data set": data})
    write_overview(tmp_path, [tmp_path / name for name in ("lfw-all", "lfw-identity", "other-all")])
    text = (tmp_path / "overview.md").read_text()
    assert text.count("lfw, measured here: ID") == 1 == text.count("other, measured here: ID")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ours ")]
    shown = written(numbers.summary([_result("identity", seed=8)])["identity"]["id_top1"])
    assert [shown in row for row in rows] == [True, False] and rows[0][10:] == ["-", "-", "- |"] and "[" in rows[1][10]
    assert "<table" in (tmp_path / "overview.html").read_text()
    with pytest.raises(NotReady, match="no whole report"):
        write_overview(tmp_path, [tmp_path / "nowhere"])


def test_every_metric_is_explained_and_stored():
    derived = {"failure_rate", "smile_gap", "jaw_gap"} | {c.name for c in COLUMNS if c.statistic}
    assert {name for c in COLUMNS for name in c.of} <= set(MEASURED) and all(c.of for c in COLUMNS if c.statistic)
    assert {c.name for c in COLUMNS} - derived <= set(MEASURED) and all(c.meaning.endswith(".") for c in COLUMNS)
    assert set(BY_NAME) == {c.name for c in COLUMNS}


def test_a_glance_at_failures_alone_says_nothing_that_was_not_measured() -> None:
    none = {"mean": None, "low": None, "high": None, "count": 0}
    numbers = {
        "items": 6,
        "chance_top1": None,
        "failure_rate": {"mean": 100.0},
        "id_top1": {"mean": 0.0, "low": 0.0, "high": 0.0, "count": 6},
    }
    numbers |= {"pose_error": none, "psnr": none}
    said = _said("all", numbers, {"real-photo": {"id_top1": none}}) + _said("reconstruct", numbers, {})
    assert "In 100 % of the outputs no face was found." in said
    assert "turned" not in said and "PSNR" not in said and "another photograph" not in said
