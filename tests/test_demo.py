"""The demo: the same pictures from every empty home, a page that a phone shows, and a model's life behind it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, opened
from shell import run
from test_gates import result
from test_portraits import model  # noqa: F401
from test_shipped import exported, workspace  # noqa: F401

from assets import gates
from assets.stores.queue import Queue
from assets.stores.registry import Registry
from diffsfsr.portrait import shipped
from diffsfsr.portrait.provenance import verify
from diffsfsr.presets import tuned
from pipelines import demo, demo_page
from pipelines.demo_page import Story
from pipelines.showcase import FRAMES


@pytest.fixture(scope="module")
def begun(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Story]:  # noqa: F811
    """Two homes that were empty, each with what the shipped model shows at once, and a page of it."""
    found = {tmp_path_factory.mktemp("home"): Story(exported) for _ in range(2)}
    for home, story in found.items():
        demo._show(story, demo._shipped_pictures(home), home)
    return found


@pytest.fixture
def homes(begun: dict[Path, Story]) -> list[Path]:
    return list(begun)


def portraits(home: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (home / "portraits").glob("*.png")}


def test_two_empty_homes_show_the_same_bytes(homes: list[Path]) -> None:
    first, second = map(portraits, homes)
    assert first == second and len(first) == 3 + 2 + 1  # the tasks; neutral and amusement, which this model has faces for; the travel
    orders = [verify(homes[0] / "portraits" / name)["order"] for name in first]
    assert sorted(order["task"] for order in orders) == ["all"] * 3 + ["expression"] * 2 + ["identity"]
    assert len(set(first.values())) == len(first)


def test_the_page_is_there_before_the_rest_is_made(homes: list[Path], exported: Path) -> None:  # noqa: F811
    text = (homes[0] / "demo" / "index.html").read_text(encoding="utf-8")
    assert "The rest is still being made" in text and "it is small" in text.lower()
    selfies, scenes, results = 2 + 1, 3 + 3 + 1, 3 + 3 + 2 + FRAMES  # of the tasks (whole, and from near), the words, the travel
    assert len(re.findall("<img", text)) == selfies + scenes + results
    assert "neutral (exact)" in text and "amusement (cluster)" in text
    assert "<b>41.5</b> <small>[35.2, 48]</small>" in text and "identity by reid0095" in text  # as evaluation.json has it
    assert "faces: taken for the family of the word by mini_xception" in text and "<b>0.83</b>" in text
    assert f"starter-{demo_version(homes[0])}" in text


def demo_version(home: Path) -> str:
    return json.loads(next((home / "portraits").glob("*.json")).read_text())["model_version"].removeprefix("starter-")


@pytest.fixture
def whole(begun: dict[Path, Story], exported: Path, tmp_path: Path) -> str:  # noqa: F811
    """The page of a demo that has ended, its figures those of a report and its verdicts those of real gates."""
    judged = gates.judge({"six, all": result(n=5)}, None, gates.read("lab"))
    measured = json.loads((exported / "evaluation.json").read_text())["measured"]["faces"]
    home, first = next(iter(begun.items()))
    story = Story(exported, first.shown, measured={"shipped, <six>": measured, "trained, <six>": measured}, done=True)
    story.verdicts = [{"version": 2, "promoted": False, "comparison": f"Version 2 against champion 1.\n\n{gates.table(judged)}"}]
    portrait = next((home / "portraits").glob("[0-9a-f]*.png"))
    story.requests = [_request("failed", None, "no face <b>"), _request("done", portrait, None)]
    story.seconds, story.facts = {"portraits": 12.4, "train": 59.9}, {"faces": 8}
    demo_page.write(tmp_path / "index.html", story)
    return (tmp_path / "index.html").read_text(encoding="utf-8")


def _request(state: str, portrait: Path | None, reason: str | None) -> Any:
    from types import SimpleNamespace

    return SimpleNamespace(id="1", state=state, reason=reason, payload={"emotion": "joy"}, result={"portrait": str(portrait)})


def test_the_page_tells_figures_verdicts_and_times(whole: str) -> None:
    for told in ("trained, &lt;six&gt;, swap all <small>(200 items)", "Version 2 was refused: the champion stays", "no face &lt;b&gt;"):
        assert told in whole
    assert '<tr class="ours"><th scope="row">six, all</th><td>items</td><td>5</td><td>REFUSED</td>' in whole
    assert '<tr class="other"><th scope="row">all of it</th><td>72</td>' in whole and "still being made" not in whole
    assert whole.count("41.5</b>") == 3  # the record, and twice in this run


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine to open the page with")
def test_a_phone_shows_all_of_it_without_sideways_scroll(whole: str, tmp_path: Path) -> None:
    said, console = opened(tmp_path, whole, 390)
    assert console == [] and said["wrong"] == [] and said["broken"] == 0
    assert said["width"] == 390 >= said["needs"] and said["headings"] == 1


def test_without_a_model_the_page_says_so(tmp_path: Path) -> None:
    demo_page.write(tmp_path / "index.html", Story(None, measured={"trained, six": {"all": {"items": 6}}}, done=True))
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "What the figures mean" in text and "How many times more the outputs are like the person" in text
    assert "trained from nothing on a handful" in text and "shipped model" not in text and "comes with this package, offline" not in text


def test_the_demos_gates_are_the_real_ones_but_for_the_items(monkeypatch: pytest.MonkeyPatch) -> None:
    real = gates.read("starter").__dict__
    monkeypatch.setenv("DIFFSFSR_GATES", str(demo._GATES))
    here = gates.read(tuned("starter")).__dict__
    assert {name for name in real if here[name] != real[name]} == {"items"} and here["items"] == int(demo._SHORT["evaluation.items"])


# --- the whole of it --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_models_whole_life(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """From a package with a model, into an empty home, with no weights but those of packages."""
    home = tmp_path / "home"
    for name, value in {"DIFFSFSR_STARTER": exported, "DIFFSFSR_HOME": home, "DIFFSFSR_GATES": demo._GATES}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("DIFFSFSR_WEIGHTS", raising=False)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setitem(demo._SHORT, "training.steps", "8")
    monkeypatch.setitem(demo._SHORT, "training.decay_from", "6")
    ran = run("demo")
    assert ran.code == 0, ran
    stages = re.findall(r"== (\w+) took", ran.err)
    assert stages == ["portraits", "prepare", "champion", "train", "evaluate", "generate"]
    registry = Registry(f"sqlite:///{home}/mlflow.db", home / "mlartifacts", home / "models")
    first, second = registry.resolve("1"), registry.resolve("2")
    assert first.tags["preset"] == shipped.preset_of(exported).name and second.tags["preset"] == tuned(first.tags["preset"])
    asked = Queue(f"sqlite:///{home}/queue.db").list()
    in_service = str(registry.champion) if registry.champion else f"starter-{demo_version(home)}"
    assert [(one.state, one.result["model_version"]) for one in asked] == [("done", in_service)] * 3
    text = (home / "demo" / "index.html").read_text(encoding="utf-8")
    for told in ("shipped, shipped-pictures, swap all", "trained, shipped-pictures, swap all", "Version 1 was", "Version 2 was"):
        assert told in text


@pytest.mark.slow
def test_without_one_a_model_is_trained_from_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIFFSFSR_WEIGHTS", raising=False)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setenv("DIFFSFSR_HOME", str(tmp_path / "home"))
    ran = run("demo", "--preset", "tiny")
    assert ran.code == 0, ran
    assert re.findall(r"== (\w+) took", ran.err) == ["prepare", "train", "evaluate", "generate"]
    text = (tmp_path / "home" / "demo" / "index.html").read_text(encoding="utf-8")
    assert "Version 1 was promoted" in text and len(re.findall("by version 1", text)) == 3
