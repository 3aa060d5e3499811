"""The identity judges on real photographs: the same person against others, which one is picked, and what is said of them."""

import numpy as np
import pytest
import torch

from diffsfsr import config, presets
from diffsfsr.encoders import load_encoder
from diffsfsr.errors import InputError, NotReady
from diffsfsr.evaluation import judges, metrics
from diffsfsr.evaluation.judges import chosen, pick_identity_judge, pick_judges
from diffsfsr.face import alignment
from diffsfsr.face.images import read, to_tensor


def _inputs(image, size=128):
    faces = alignment.align_all(image, size)
    return to_tensor(np.stack([f.crop for f in faces])), torch.from_numpy(np.stack([f.crop_landmarks for f in faces]))


@pytest.fixture(scope="module")
def judge(weights_dir):
    if not (weights_dir / "reid0095.onnx").is_file():
        pytest.skip("reid0095.onnx is not among the weights")
    return pick_identity_judge("reid0095")


def test_a_judge_is_an_encoder_without_gradients(judge, astronaut):
    images, landmarks = _inputs(read(astronaut))
    images.requires_grad_(True)
    made = judge(images, landmarks)
    torch.testing.assert_close(made, load_encoder("reid0095")(images, landmarks).detach())
    assert not made.requires_grad and judge.encoder(images, landmarks).requires_grad
    assert judge.version == load_encoder("reid0095").version and not judge.centred


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
    assert picked.name == "reid0095" and picked.independent and not picked.centred
    assert not pick_identity_judge("reid0095", known=["dlib", "reid0095"]).independent


@pytest.mark.parametrize(
    ("conditioning", "judge", "independent"),
    [
        (["dlib"], "reid0095", True),
        (["mobilefacenet_arcface", "dlib", "mobileface_v2"], "reid0095", True),
        (["dlib", "reid0095"], "mobilefacenet_arcface", True),
        (["mobilefacenet_arcface", "mobileface_v2", "reid0095"], "dlib", True),
        (["mobileface_v2", "mobilefacenet_arcface", "dlib", "reid0095"], "mobileface_v2", False),
    ],
)
def test_any_is_the_first_here_that_does_not_condition_else_the_first_that_does(weights_dir, conditioning, judge, independent):
    picked = pick_identity_judge("any", conditioning)
    assert (picked.name, picked.independent) == (judge, independent)


def test_without_weights_the_conditioning_encoder_judges_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFSFSR_WEIGHTS", str(tmp_path))
    picked = pick_identity_judge("any", known=["dlib"])
    assert picked.name == "dlib" and picked.centred and not picked.independent
    assert "NOT independent" in judges.describe(picked)
    assert pick_identity_judge("dlib", known=["facenet"]).independent
    assert "independent of the model" in judges.describe(pick_identity_judge("dlib", known=["facenet"]))


def test_missing_and_unknown_judges_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFSFSR_WEIGHTS", str(tmp_path))
    with pytest.raises(NotReady, match="reid0095"):
        pick_identity_judge("reid0095")
    with pytest.raises(InputError, match="did you mean reid0095.*known: any, dlib"):
        pick_identity_judge("reid95")
    with pytest.raises(NotReady, match="glintr100"):
        pick_identity_judge("glintr100")


# --- all of them --------------------------------------------------------------------------------------------------------


def _dln(images, landmarks):
    return landmarks[:, :8].flatten(1)


def test_a_preset_names_its_judges(weights_dir):
    lab = chosen(presets.preset("lab"))
    assert (lab["identity"], lab["pose"], lab["coefficients"], lab["region"]) == ("reid0095", "fsanet", "blendshapes", "hull")
    paper = chosen(presets.preset("paper"))
    assert (paper["identity"], paper["pose"], paper["region"]) == ("glintr100", "hopenet", "segformer")
    assert chosen(presets.preset("lab-commercial"))["pose"] == "pnp"


def test_the_judges_of_lab_see_a_face_each_in_its_way(weights_dir, astronaut):
    panel = pick_judges(presets.preset("lab"), _dln)
    images, landmarks = _inputs(read(astronaut))
    crops = ((images.permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy()
    widths = {role: panel.see(role, crops, landmarks.numpy()).shape for role in panel.named}
    assert widths == {"identity": (1, 256), "expression": (1, 16), "pose": (1, 3), "coefficients": (1, 52)}
    told = panel.describe()
    assert told["identity"].startswith("reid0095 (independent") and told["pose"].startswith("fsanet (weights ")
    assert "weights pull inception" in told["fid"] and "fid" not in panel.named
    assert panel.version == pick_judges(presets.preset("lab"), _dln).version


def test_what_is_not_here_is_missing_or_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFSFSR_WEIGHTS", str(tmp_path))
    lab = presets.preset("lab")
    assert chosen(lab) == {"identity": "dlib", "pose": "pnp", "region": "hull", "coefficients": "", "fid": ""}
    panel = pick_judges(lab, _dln)
    assert panel.coefficients is None and "facemesh" in panel.describe()["coefficients"] and panel.pose.name == "pnp"
    with pytest.raises(NotReady, match="fsanet-1x1"):
        pick_judges(config.override(lab, {"evaluation.pose": "fsanet"}), _dln)
    with pytest.raises(NotReady, match="glintr100"):
        pick_judges(presets.preset("paper"), _dln)
    with pytest.raises(NotReady, match=r"hopenet_robust_alpha1.pkl.*weights pull hopenet --mirror ADDRESS"):
        pick_judges(config.override(presets.preset("paper"), {"evaluation.judge": "any"}), _dln)
