"""Outputs are made once, by content: a killed run goes on, and a thousand of them are never in memory together."""

import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from diffsfsr.errors import NotReady
from diffsfsr.evaluation.items import Faces, Item, pair_list
from diffsfsr.evaluation.outputs import Kept, Outputs

ROOT = Path(__file__).parents[1]


class Painter:
    """Every item a picture of noise by its seed; every fifth seed gives none. Each made item is a line of `log`."""

    name = "painter"

    def __init__(self, side=16, version="1", log=None, pause=0.0):
        self.side, self.version, self.log, self.pause, self.made = side, version, log, pause, []

    def __call__(self, items, seeds):
        time.sleep(self.pause)
        self.made += seeds
        if self.log:
            with open(self.log, "a") as f:
                f.writelines(f"{seed}\n" for seed in seeds)
        return [None if seed % 5 == 4 else self.painted(seed) for seed in seeds]

    def painted(self, seed):
        return np.random.default_rng(seed).integers(0, 256, (self.side, self.side, 3)).astype(np.uint8)


def _pairs(n, side=16, first=0):
    faces = Faces(["a", "b", "c"], ["a", "b", "c"], [np.zeros((side, side, 3), np.uint8)] * 3, np.zeros((3, 68, 2)))
    return pair_list(faces, "all", [Item(0, 1, 2)] * n, list(range(first, first + n))), faces


def _pictures(outputs, batch=4):
    return [picture for _, pictures in outputs.batches(batch) for picture in pictures]


def _same(a, b):
    return len(a) == len(b) and all((x is None and y is None) or (x == y).all() for x, y in zip(a, b, strict=True))


def test_outputs_come_in_order_and_are_made_once(tmp_path):
    method, (pairs, faces) = Painter(), _pairs(11)
    outputs = Outputs(tmp_path, method, pairs, faces)
    places = [place for part, _ in outputs.batches(4) for place in part]
    assert places == list(range(11)) and method.made == list(range(11))
    wanted = [None if seed % 5 == 4 else method.painted(seed) for seed in range(11)]
    idle = Painter()
    again = Outputs(tmp_path, idle, pairs, faces)
    assert _same(_pictures(again), wanted) and (again.picture(3) == wanted[3]).all() and again.picture(4) is None
    assert idle.made == []


def test_what_an_output_depends_on_makes_another_one(tmp_path):
    pairs, faces = _pairs(3)
    list(Outputs(tmp_path, Painter(), pairs, faces).batches(3))
    for method, (other, own) in (
        (Painter(version="2"), _pairs(3)),  # another model
        (Painter(side=8), _pairs(3, side=8)),  # another size of crop
        (Painter(), _pairs(3, first=20)),  # other noise
        (Painter(), (pair_list(faces, "all", [Item(0, 2, 1)] * 3, [0, 1, 2]), faces)),  # other faces
    ):
        list(Outputs(tmp_path, method, other, own).batches(3))
        assert len(method.made) == 3
    longer, _ = _pairs(5)
    method = Painter()
    list(Outputs(tmp_path, method, longer, faces).batches(2))
    assert method.made == [3, 4]  # the first three belong to any list that has them


def test_only_what_lacks_is_made_and_a_damaged_file_lacks(tmp_path):
    pairs, faces = _pairs(8)
    first = Outputs(tmp_path, Painter(), pairs, faces)
    wanted = _pictures(first)
    files = {i: tmp_path / first.keys[i][:2] / f"{first.keys[i]}.png" for i in range(8)}
    files[1].unlink()
    files[6].write_bytes(files[6].read_bytes()[:-9])
    rotten = bytearray(files[3].read_bytes())
    rotten[40:60] = bytes(20)  # its end is whole
    files[3].write_bytes(rotten)
    method = Painter()
    assert _same(_pictures(Outputs(tmp_path, method, pairs, faces)), wanted) and method.made == [1, 3, 6]


def test_without_a_folder_nothing_is_kept():
    method, (pairs, faces) = Painter(), _pairs(3)
    outputs = Outputs(None, method, pairs, faces)
    assert (outputs.picture(2) == outputs.picture(2)).all() and method.made == [2, 2]


def test_a_method_known_by_its_outputs_alone(tmp_path):
    pairs, faces = _pairs(5)
    wanted = _pictures(Outputs(tmp_path, Painter(), pairs, faces))
    kept = Outputs(tmp_path, Kept("painter", "1"), pairs, faces)
    assert _same(_pictures(kept), wanted)
    (tmp_path / kept.keys[2][:2] / f"{kept.keys[2]}.png").unlink()
    with pytest.raises(NotReady, match="outputs of painter are no longer kept; run `diffsfsr run evaluate --method painter`"):
        kept.picture(2)


@pytest.mark.parametrize("returned", [[], [np.zeros((8, 8, 3), np.uint8)] * 2, [np.zeros((16, 16, 3), np.float32)] * 2])
def test_a_method_that_returns_something_else_is_refused(tmp_path, returned):
    class Wrong(Painter):
        def __call__(self, items, seeds):
            return returned

    pairs, faces = _pairs(2)
    with pytest.raises(ValueError, match="painter returned .*for 2 items with crops of side 16"):
        Outputs(tmp_path, Wrong(), pairs, faces).pictures([0, 1])


def test_one_batch_is_in_memory_at_a_time(tmp_path):
    alive, most = [], 0

    class Watched(np.ndarray):
        """An array that may be told of when it goes."""

    class Watching(Painter):
        def painted(self, seed):
            picture = super().painted(seed).view(Watched)
            alive.append(seed)
            weakref.finalize(picture, alive.remove, seed)
            return picture

    pairs, faces = _pairs(40)
    for _ in Outputs(tmp_path, Watching(), pairs, faces).batches(4):
        most = max(most, len(alive))
    assert 0 < most <= 8  # the batch that was given, and the one before it, which the loop still held


_RUN = """
import sys; sys.path.insert(0, "tests")
from pathlib import Path
from test_outputs import Outputs, Painter, _pairs
pairs, faces = _pairs(40)
for _ in Outputs(Path(sys.argv[1]), Painter(log=sys.argv[2], pause=0.05), pairs, faces).batches(4): pass
"""


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    log, folder = tmp_path / "log", tmp_path / "outputs"
    run = [sys.executable, "-c", _RUN, str(folder), str(log)]
    with subprocess.Popen(run, cwd=ROOT) as process:
        deadline = time.monotonic() + 60
        while len(list(folder.glob("??/[!.]*.png"))) < 9 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("??/[!.]*.png")}
    before = [int(line) for line in log.read_text().split()]
    assert process.returncode == -signal.SIGKILL and 9 <= len(finished) < 40
    subprocess.run(run, cwd=ROOT, check=True)
    after = [int(line) for line in log.read_text().split()[len(before) :]]
    assert len(after) == 40 - len(finished) and sorted({*before, *after}) == list(range(40))
    assert all(path.stat().st_mtime_ns == written for path, written in finished.items())
    pairs, faces = _pairs(40)
    idle = Painter()
    assert _same(_pictures(Outputs(folder, idle, pairs, faces)), [None if i % 5 == 4 else idle.painted(i) for i in range(40)])
    assert idle.made == []


_MEASURE = """
import resource, sys; sys.path.insert(0, "tests")
from pathlib import Path
import numpy as np
from test_outputs import Outputs, Painter, _pairs
import diffsfsr.face.images
class Plain(Painter):
    def __call__(self, items, seeds): return [np.full((512, 512, 3), seed % 256, np.uint8) for seed in seeds]
pairs, faces = _pairs(1000, side=512)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
outputs = Outputs(Path(sys.argv[1]), Plain(side=512), pairs, faces)
outputs.pictures([0, 1]); before = peak()
for _ in range(2):
    for places, pictures in outputs.batches(16): assert (pictures[3][0, 0] == places[3] % 256).all()
print((peak() - before) // 1024)
"""


@pytest.mark.slow
def test_a_thousand_pictures_of_512_are_never_in_memory_together(tmp_path):
    """786 MB of them; measured with their making and with their reading again: one batch is 13 MB."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 80
