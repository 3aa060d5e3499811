"""Videos of known frames, and what is no video: ten even frames of each, once; everything else with its reason."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from diffsfsr.errors import InputError, NotReady
from diffsfsr.face.collection import scan
from diffsfsr.face.images import read
from diffsfsr.fetch import videos
from diffsfsr.fetch.videos import even_frames, is_of_videos, listed, take_frames

SIDE = 64


def film(path: Path, frames: int, codec: str = "mp4v", rate: float = 25.0, side: int = SIDE) -> Path:
    """A video whose frame i says so: eight bars, white where a bit of i is set."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), rate, (side, side))
    assert writer.isOpened(), codec
    for i in range(frames):
        bars = [255 if i >> bit & 1 else 0 for bit in range(8)]
        writer.write(np.tile(np.repeat(np.uint8(bars), side // 8)[None, :, None], (side, 1, 3)))
    writer.release()
    return path


def places(frames: list[np.ndarray]) -> list[int]:
    """Which frames those are."""
    return [sum((bar.mean() > 128) << bit for bit, bar in enumerate(np.split(frame, 8, axis=1))) for frame in frames]


def outcomes(folder: Path) -> dict[str, tuple[int, str]]:
    with open(folder / "videos.csv", newline="", encoding="utf-8", errors="surrogateescape") as f:
        return {row["file"]: (int(row["frames"]), row["why"]) for row in csv.DictReader(f)}


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "mp4v"), ("a.avi", "MJPG"), ("a.mkv", "mp4v")])
def test_frames_are_the_middles_of_ten_equal_parts(tmp_path: Path, name: str, codec: str) -> None:
    frames = even_frames(film(tmp_path / name, 100, codec))
    assert places(frames) == [5, 15, 25, 35, 45, 55, 65, 75, 85, 95]
    assert all(frame.shape == (SIDE, SIDE, 3) and frame.dtype == np.uint8 for frame in frames)


def test_a_short_video_gives_every_frame_once(tmp_path: Path) -> None:
    assert places(even_frames(film(tmp_path / "a.mp4", 4))) == [0, 1, 2, 3]


def test_colour_is_rgb(tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25, (SIDE, SIDE))
    for _ in range(12):
        writer.write(np.full((SIDE, SIDE, 3), (0, 0, 255), np.uint8))  # OpenCV's red
    writer.release()
    assert even_frames(tmp_path / "a.avi")[0].mean(axis=(0, 1)) == pytest.approx([255, 0, 0], abs=6)


def test_a_header_that_lies_about_the_length_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As files of recorders have none, and files that were cut short have the old one."""
    path = film(tmp_path / "a.avi", 40, "MJPG")
    for claimed in (0, 4000):
        monkeypatch.setattr(videos, "_claimed", lambda file, most, claimed=claimed: claimed)
        assert places(even_frames(path)) == [2, 6, 10, 14, 18, 22, 26, 30, 34, 38]


def test_a_video_cut_short_gives_what_it_has(tmp_path: Path) -> None:
    path = film(tmp_path / "a.avi", 60, "MJPG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = places(even_frames(path))
    assert 8 <= len(found) <= 10 and max(found) < 32 and np.diff(found).min() > 1


def test_each_bad_video_costs_itself_only_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, folder = tmp_path / "v", tmp_path / "f"
    film(root / "good.mp4", 30)
    film(root / "deep" / "good.mp4", 30)
    film(root / "huge.avi", 2, "MJPG", side=512)
    (root / "empty.mp4").touch()
    (root / "text.mp4").write_text("no video")
    (root / "list.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\ngood.mp4\n")
    (root / "noise.mkv").write_bytes(np.random.default_rng(0).bytes(10_000))
    (root / "gone.mp4").symlink_to("nowhere.mp4")
    os.mkfifo(root / "pipe.mp4")
    shutil.copy(root / "good.mp4", root / "caf\u00e9 100%d.mp4")
    shutil.copy(root / "good.mp4", root / os.fsdecode(b"caf\xe9.mp4"))
    taken = take_frames(root, folder, max_pixels=500 * 500)
    found = outcomes(folder)
    assert {name: n for name, (n, _) in found.items() if n} == {
        "good.mp4": 10,
        "deep/good.mp4": 10,
        "caf\u00e9 100%d.mp4": 10,
    }
    assert found["huge.avi"][1] == "frames of 512 x 512 pixels, more than 250,000"
    assert found[os.fsdecode(b"caf\xe9.mp4")][1] == "its name is not plain text: rename it"
    assert found["empty.mp4"][1] == "the file is empty" and found["pipe.mp4"][1] == "not a regular file"
    assert all(found[name][1] == "not a video that can be decoded" for name in ("text.mp4", "noise.mkv", "list.mp4"))
    assert (taken.videos, taken.frames) == (3, 30) and sum(taken.missing.values()) == 8
    rows = scan(folder)
    assert len(rows) == 30 and len({row["person"] for row in rows}) == 3 and {row["face"] for row in rows} == {"largest"}
    assert {"good", "deep/good"} < {row["person"] for row in rows} and len({row["split"] for row in rows if row["person"] == "good"}) == 1


def test_a_decoder_that_takes_too_long_is_ended_with_its_process(tmp_path: Path) -> None:
    root, folder = tmp_path / "v", tmp_path / "f"
    film(root / "a.mp4", 30)
    with pytest.raises(NotReady, match="none of the 1 videos .* took more than 0.0001 s"):
        take_frames(root, folder, limit=0.0001)  # no decoder is that quick
    assert outcomes(folder) == {"a.mp4": (0, "its decoder crashed or took more than 0.0001 s")}
    (folder / "videos.csv").unlink()
    assert take_frames(root, folder).frames == 10


def test_frames_are_taken_once_and_again_where_a_video_has_changed(tmp_path: Path) -> None:
    root, folder = tmp_path / "v", tmp_path / "f"
    film(root / "a.mp4", 30)
    film(root / "b.mp4", 30)
    (root / "bad.mp4").write_text("no video")
    take_frames(root, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.jpg")}
    assert len(before) == 20
    take_frames(root, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.jpg")} == before
    film(root / "b.mp4", 50)
    (folder / "a" / "03.jpg").unlink()
    take_frames(root, folder)
    assert all(path.stat().st_mtime_ns > made for path, made in before.items())
    assert places([read(folder / "b" / "09.jpg")]) == [47]
    (root / "b.mp4").unlink()
    assert take_frames(root, folder).videos == 1 and not (folder / "b").exists()


def test_a_folder_holds_the_frames_of_one_folder(tmp_path: Path) -> None:
    for name in "ab":
        film(tmp_path / name / "x.mp4", 12)
    take_frames(tmp_path / "a", tmp_path / "f")
    with pytest.raises(InputError, match="choose another name"):
        take_frames(tmp_path / "b", tmp_path / "f")


def test_a_folder_is_of_videos_where_it_has_no_photograph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not is_of_videos(tmp_path)
    film(tmp_path / "a.mp4", 2)
    assert is_of_videos(tmp_path)
    (tmp_path / "z.jpg").touch()
    assert not is_of_videos(tmp_path) and "videos are left alone" in capsys.readouterr().err


def test_videos_of_one_name_have_folders_of_their_own(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.avi", "b/c.mp4", "b-c.mp4", "../out.mp4"):
        (tmp_path / "v" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "v" / name).touch()
    found = listed(tmp_path / "v")
    assert len(found) == 4 and len({video.folder for video in found}) == 4
    assert not any("/" in video.folder or video.folder.startswith(".") for video in found)


# --- FaceForensics++ ------------------------------------------------------------------------------------------------------


def faceforensics(root: Path) -> Path:
    """Its published folders: two originals in two compressions, one of actors, and a fake."""
    for name in ("000", "001"):
        for compression in ("c23", "c40"):
            film(root / "original_sequences" / "youtube" / compression / "videos" / f"{name}.mp4", 20)
    film(root / "original_sequences" / "actors" / "raw" / "videos" / "01__hugging_happy.mp4", 20)
    film(root / "original_sequences" / "actors" / "raw" / "videos" / "01__kitchen_still.mp4", 20)
    film(root / "manipulated_sequences" / "Deepfakes" / "c23" / "videos" / "000_003.mp4", 20)
    return root


def test_of_faceforensics_the_originals_are_taken_once_and_all_are_test(tmp_path: Path) -> None:
    root, folder = faceforensics(tmp_path / "FF++"), tmp_path / "f"
    taken = take_frames(root, folder)
    assert set(outcomes(folder)) == {
        "original_sequences/youtube/c23/videos/000.mp4",
        "original_sequences/youtube/c23/videos/001.mp4",
        "original_sequences/actors/raw/videos/01__hugging_happy.mp4",
        "original_sequences/actors/raw/videos/01__kitchen_still.mp4",
    }
    rows = scan(folder)
    assert taken.frames == len(rows) == 40 and {row["split"] for row in rows} == {"test"}
    assert {row["person"] for row in rows} == {"youtube-000", "youtube-001", "actors-01"}


def test_a_folder_inside_faceforensics_is_known_too(tmp_path: Path) -> None:
    root = faceforensics(tmp_path / "FF++") / "original_sequences" / "youtube" / "c40" / "videos"
    assert [(video.person, video.split) for video in listed(root)] == [("youtube-000", "test"), ("youtube-001", "test")]
