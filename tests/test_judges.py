"""The identity judges on real photographs: chips against OpenCV, the same person against others, and what is said of them."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from diffsfsr.errors import InputError, NotReady
from diffsfsr.evaluation import judges, metrics
from diffsfsr.evaluation.judges import EncoderJudge, OnnxJudge, pick_identity_judge
from diffsfsr.face import alignment
from diffsfsr.face.images import read, to_tensor


def _inputs(image, size=128):
    faces = alignment.align_all(image, size)
    return to_tensor(np.stack([f.crop for f in faces])), torch.from_numpy(np.stack([f.crop_landmarks for f in faces]))


@pytest.fixture(scope="module")
def judge(weights_dir):
    if not (weights_dir / "reid0095.onnx").is_file():
        pytest.skip("reid0095.onnx is not among the weights")
    return OnnxJudge("reid0095")


def test_chip_is_bgr_bytes_under_the_template(judge, astronaut):
    """Against OpenCV's own least-squares fit and warp of the whole picture."""
    cv2 = pytest.importorskip("cv2")
    image = read(astronaut)
    face = alignment.align_all(image, 128)[0]
    points = face.landmarks
    five = np.stack([points[36:42].mean(0), points[42:48].mean(0), points[30], points[48], points[54]])
    matrix = cv2.estimateAffinePartial2D(five, judge.recipe.template.numpy(), method=cv2.LMEDS)[0]
    want = cv2.warpAffine(image, matrix, (128, 128))[..., ::-1].astype(np.float64)
    got = judge.prepare(to_tensor(image), torch.from_numpy(points)[None])[0].permute(1, 2, 0).numpy()
    assert got.shape == (128, 128, 3) and got.min() >= 0 and got.max() > 200
    inner = slice(24, 104)
    assert np.abs(got - want)[inner, inner].mean() < 8  # robust and plain fits differ by about a pixel
    assert np.abs(got[..., ::-1] - want)[inner, inner].mean() > 20  # RGB instead of BGR is far off


def test_same_person_is_near_and_others_are_far(judge, faces_dir):
    names = ["photos/obama.jpg", "photos/obama2.jpg", "photos/biden.jpg"]
    photographs = [faces_dir / n for n in names]
    if not all(p.is_file() for p in photographs):
        pytest.skip(f"{names} are not all in {faces_dir}")
    vectors = [judge(*_inputs(read(p)))[0] for p in photographs]
    a, b, c = torch.stack(vectors)
    assert metrics.cosine(a[None], b[None])[0] > 0.45
    assert metrics.cosine(a[None], c[None])[0] < 0.25


def test_lfw_people_are_retrieved_from_other_photographs(judge, faces_dir):
    """Twenty people with two photographs each: the second finds the first among twenty (chance is 5 %)."""
    pairs = []
    for folder in sorted((faces_dir / "lfw").iterdir())[::40]:
        files = sorted(folder.glob("*.jpg")) if folder.is_dir() else []
        pairs += [files[:2]] if len(files) > 1 else []
        if len(pairs) == 20:
            break
    sides = [[], []]
    for pair in pairs:
        found = [alignment.align_all(read(p), 128) for p in pair]
        if all(found):
            for side, faces in zip(sides, found, strict=True):
                face = min(faces, key=lambda f: abs(f.landmarks.mean(axis=0) - 125).sum())
                side.append(judge(to_tensor(face.crop), torch.from_numpy(face.crop_landmarks)[None])[0])
    assert len(sides[0]) >= 15
    ranks = metrics.retrieval_ranks(torch.stack(sides[1]), torch.stack(sides[0]), range(len(sides[0])))
    assert metrics.hit(ranks, 1).mean() >= 0.9


def test_batch_equals_one_by_one_and_six_people_differ(judge, six_people):
    images, landmarks = _inputs(read(six_people))
    together = judge(images, landmarks)
    alone = torch.cat([judge(images[i : i + 1], landmarks[i : i + 1]) for i in range(len(images))])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    unit = torch.nn.functional.normalize(together, dim=1)
    assert (unit @ unit.T - torch.eye(len(images))).max() < 0.5
    assert together.shape == (6, 256) and len(judge.version) == 64


def test_any_prefers_an_independent_judge(judge):
    picked = pick_identity_judge("any")
    assert picked.name == "reid0095" and picked.independent and not picked.centre
    assert not pick_identity_judge("reid0095", conditioning=["dlib", "reid0095"]).independent


class _Dlib(torch.nn.Module):
    name, dim, version = "dlib", 4, "0" * 64

    def forward(self, images, landmarks):
        return images.mean(dim=(2, 3)) + landmarks.mean(dim=(1, 2))[:, None]


@pytest.fixture
def stub_encoders(monkeypatch):
    """`load_encoder` without its weights."""
    fake = ModuleType("diffsfsr.encoders")
    fake.load_encoder = lambda name: _Dlib()
    fake.__path__ = sys.modules["diffsfsr.encoders"].__path__
    monkeypatch.setitem(sys.modules, "diffsfsr.encoders", fake)


def test_without_weights_the_conditioning_encoder_judges_and_says_so(stub_encoders, monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFSFSR_WEIGHTS", str(tmp_path))
    picked = pick_identity_judge("any", conditioning=["dlib"])
    assert isinstance(picked, EncoderJudge) and picked.centre and not picked.independent
    assert "NOT independent" in judges.describe(picked)
    images, landmarks = torch.rand(2, 3, 8, 8), torch.rand(2, 68, 2)
    torch.testing.assert_close(picked(images, landmarks), picked.encoder(images, landmarks))
    assert pick_identity_judge("dlib", conditioning=["arcface"]).independent
    assert "independent of the model" in judges.describe(pick_identity_judge("dlib", conditioning=["arcface"]))


def test_missing_and_unknown_judges_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFSFSR_WEIGHTS", str(tmp_path))
    with pytest.raises(NotReady, match="reid0095"):
        pick_identity_judge("reid0095")
    with pytest.raises(InputError, match="did you mean reid0095.*known: any, dlib"):
        pick_identity_judge("reid95")
    with pytest.raises(NotReady, match="glintr100"):
        pick_identity_judge("glintr100")
