"""An evaluation of methods whose right answer is known: copies, mixtures, failures and seeded degradations of real photographs."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffsfsr import tables
from diffsfsr.encoders.blendshapes import NAMES
from diffsfsr.evaluation import metrics
from diffsfsr.evaluation.items import Faces, Item, item_seed, make_pairs, pair_list
from diffsfsr.evaluation.judges import Judges
from diffsfsr.evaluation.outputs import Outputs
from diffsfsr.evaluation.protocols import ITEMS, MEASURED, References, Result, evaluate
from diffsfsr.face import alignment
from diffsfsr.face.images import read
from diffsfsr.face.parsing import parser
from diffsfsr.face.pose import pose_estimator


@pytest.fixture(scope="module")
def faces(six_people):
    found = alignment.align_all(read(six_people), 128)
    assert len(found) == 6
    ids, people = [f"t1/{i}" for i in range(6)], [f"person {i}" for i in range(6)]
    labels = [{"emotion": f"mood {i}"} for i in range(6)]
    return Faces(ids, people, [f.crop for f in found], np.stack([f.crop_landmarks for f in found]), labels)


class _Pixels:
    """A judge that sees the picture itself, shrunk: a copy is its own source, and nothing else is."""

    name, version, independent, centred = "pixels", "0", True, True

    def __init__(self):
        self.seen = 0

    def __call__(self, images, landmarks):
        self.seen += len(images)
        return torch.nn.functional.adaptive_avg_pool2d(images, 12).flatten(1)


def _expression(images, landmarks):
    """Mouth opening and width over the distance of the eyes, from the landmarks alone."""
    eyes = (landmarks[:, 36:42].mean(1) - landmarks[:, 42:48].mean(1)).norm(dim=1)
    opening = (landmarks[:, 62] - landmarks[:, 66]).norm(dim=1)
    return torch.stack([opening, (landmarks[:, 48] - landmarks[:, 54]).norm(dim=1)], 1) / eyes[:, None]


def _coefficients(images, landmarks):
    """The 52 with the mouth's opening and width in their places, zero elsewhere."""
    made = torch.zeros(len(images), len(NAMES))
    opening, width = _expression(images, landmarks).unbind(1)
    made[:, NAMES.index("jawOpen")], made[:, NAMES.index("mouthSmileLeft")] = opening, width
    return made


class Copy:
    """The photograph that plays a role, changed by `change(picture, item, seed)`."""

    name, version = "copy", "1"

    def __init__(self, faces, role, change=None):
        self.faces, self.role, self.change = faces, role, change or (lambda picture, item, seed: picture)

    def __call__(self, items, seeds):
        return [self.change(self.faces.crops[getattr(item, self.role)], item, seed) for item, seed in zip(items, seeds, strict=True)]


def _judges(**others):
    return Judges(**({"identity": _Pixels(), "expression": _expression, "pose": pose_estimator("pnp"), "region": parser("hull")} | others))


def _pairs(faces, task, n=12, seed=0):
    return make_pairs(faces, ["test"] * 6, task, n, seed)


def _evaluate(faces, pairs, role="scene", change=None, judges=None, **options):
    return evaluate(Outputs(None, Copy(faces, role, change), pairs, faces), References(faces, judges or _judges()), **options)


# --- known answers ------------------------------------------------------------------------------------------------------


def test_copied_identities_score_100_and_another_role_does_not(faces):
    pairs = _pairs(faces, "all")
    copied = _evaluate(faces, pairs, "identity")
    assert copied.column("found").all() and copied.gallery == len({i.identity for i in pairs.items})
    assert copied.column("id_top1").mean() == 1 and (copied.column("id_rank") == 1).all()
    np.testing.assert_allclose(copied.column("id_cosine"), 1, atol=1e-6)
    assert (copied.column("pose_error") > 1).all()  # heads of six people in a group do not all point one way
    scene = _evaluate(faces, pairs, "scene")
    assert scene.column("id_top1").mean() == 0
    np.testing.assert_allclose(scene.column("id_scene_cosine"), 1, atol=1e-6)
    np.testing.assert_allclose(copied.column("id_scene_cosine"), scene.column("id_cosine"), atol=1e-6)
    found_again = scene.column("pose_error")  # in the crop of 64 pixels, where the one turned face is 8 degrees off
    assert np.sort(found_again)[-3] < 2 and found_again.max() < 10
    assert scene.column("pose_error").mean() < copied.column("pose_error").mean() / 2
    expression = _evaluate(faces, pairs, "expression")
    assert expression.column("expression_distance").mean() < 0.5 * scene.column("expression_distance").mean()


def test_shuffled_identities_score_about_one_in_as_many(faces):
    """Each output is of somebody, drawn by its seed: of six people one in six is right."""
    pairs = _pairs(faces, "all", 240)

    def somebody(picture, item, seed):
        return faces.crops[np.random.default_rng(seed).integers(6)]

    places = [SimpleNamespace(landmarks=points) for points in faces.landmarks]  # wherever a face is wanted one stands there
    result = _evaluate(faces, pairs, "scene", somebody, find_faces=lambda picture, size: places)
    assert result.gallery == 6
    assert result.column("id_top1").mean() == pytest.approx(1 / 6, abs=0.08)  # three standard errors are .07


def test_a_common_part_of_all_embeddings_is_no_likeness(faces):
    """dlib's strangers have cosines of about .84: for such a judge the mean over the sources is subtracted first."""

    class Crowded(_Pixels):
        def __call__(self, images, landmarks):
            return super().__call__(images, landmarks) + 50.0

    pairs = _pairs(faces, "all")
    raw, centred = Crowded(), Crowded()
    raw.centred = False
    values = [_evaluate(faces, pairs, judges=_judges(identity=judge)).column("id_cosine") for judge in (raw, centred)]
    assert (values[0] > 0.99).all() and abs(values[1].mean()) < 0.5


def test_expression_by_the_independent_judge(faces):
    pairs = _pairs(faces, "expression", 6)
    result = _evaluate(faces, pairs, "expression", judges=_judges(coefficients=_coefficients))
    wanted = _coefficients(torch.zeros(6, 1), torch.from_numpy(faces.landmarks)).numpy()[[i.expression for i in pairs.items]]
    np.testing.assert_allclose(result.column("jaw_open_wanted"), wanted[:, NAMES.index("jawOpen")], atol=1e-6)
    np.testing.assert_allclose(result.column("smile_wanted"), wanted[:, NAMES.index("mouthSmileLeft")] / 2, atol=1e-6)  # one side of two
    # The coefficients are the other judge's two numbers, so that the distances are the same.
    np.testing.assert_allclose(result.column("blendshape_distance"), result.column("expression_distance"), atol=1e-6)
    np.testing.assert_allclose(result.column("smile"), result.column("smile_wanted"), atol=0.1)
    without = _evaluate(faces, pairs, "expression")
    assert np.isnan(without.column("blendshape_distance")).all() and np.isnan(without.column("smile_wanted")).all()


# --- degradations -------------------------------------------------------------------------------------------------------

FACE = [name for name in MEASURED if name.startswith("id_")]


def _moved(faces, change, task="reconstruct", judges=None):
    """The names of the metrics that a change of the scene's own picture makes worse or other, beyond rounding."""
    pairs, judges = _pairs(faces, task, 6), judges or _judges()
    plain, changed = (_evaluate(faces, pairs, "scene", how, judges) for how in (None, change))
    return {name for name in MEASURED if not np.allclose(plain.column(name), changed.column(name), equal_nan=True, atol=1e-6)}


def test_one_byte_of_the_background_moves_the_background_alone_beside_the_pixels(faces):
    def touched(picture, item, seed):
        made = picture.copy()
        made[0, 0] ^= 1  # far from the face and from its edge
        return made

    assert _moved(faces, touched) <= {"background", "mse", "psnr", "ssim", *FACE}  # the judge here sees every pixel
    result = _evaluate(faces, _pairs(faces, "all", 6), "scene", touched)
    assert (result.column("background") == 1).all()


def test_a_method_that_says_what_it_may_change_is_held_to_that(faces):
    """One that changes a byte beside its own region, and one in the scene's that is not in its own."""

    class Regional(Copy):
        def regions(self, items):
            crops = np.stack([faces.crops[item.scene] for item in items])
            regions = parser("hull").masks(crops, faces.landmarks[[item.scene for item in items]])
            regions[:, : crops.shape[1] // 2] = 0
            regions[:, 0, 0] = 1
            return regions

    def touched(at):
        def change(picture, item, seed):
            made = picture.copy()
            made[at] ^= 4
            return made

        return change

    pairs, middle = _pairs(faces, "all", 4), faces.crops[0].shape[0] // 2
    for at, seen in (((0, 0), 0), ((0, 1), 4), ((middle - 4, middle), 4)):
        made = evaluate(Outputs(None, Regional(faces, "scene", touched(at)), pairs, faces), References(faces, _judges()))
        assert (made.column("background") == seen).all()


def test_blur_moves_the_pixels_and_neither_identity_nor_pose(faces):
    import cv2

    def blurred(picture, item, seed):
        inside = parser("hull").masks(picture[None], faces.landmarks[[item.scene]])[0][..., None] > 0
        return np.where(inside, cv2.GaussianBlur(picture, (0, 0), 1.0), picture)

    pairs = _pairs(faces, "reconstruct", 6)
    plain, made = _evaluate(faces, pairs), _evaluate(faces, pairs, change=blurred)
    assert (made.column("mse") > plain.column("mse") + 1).all() and (made.column("psnr") < 45).all() and (made.column("ssim") < 0.999).all()
    assert (made.column("background") == 0).all() and (made.column("id_top1") == 1).all()
    assert np.median(abs(made.column("pose_error") - plain.column("pose_error"))) < 1.5


def test_a_wrong_identity_moves_identity_and_not_the_pose(faces):
    pairs = _pairs(faces, "identity", 12)
    people = np.array([item.identity for item in pairs.items])
    wrong = [Item(item.scene, int((item.identity + 1) % 6), item.expression) for item in pairs.items]

    def labelled(chosen):
        """The scene with the identity's own colours in one corner of the judge's grid: all that this judge goes by."""

        class ByCorner(_Pixels):
            centred = False

            def __call__(self, images, landmarks):
                return torch.nn.functional.one_hot(((images[:, 0, 0, 0] + 1) * 127.5).round().long().clamp(0, 5), 6).float() + 0.1

        marked = [crop.copy() for crop in faces.crops]
        for i, crop in enumerate(marked):
            crop[0, 0, 0] = i
        known = Faces(faces.ids, faces.people, marked, faces.landmarks)
        place = {seed: who.identity for seed, who in zip(pairs.seeds, chosen, strict=True)}

        def wearing(picture, item, seed):
            made = picture.copy()
            made[0, 0, 0] = place[seed]
            return made

        return _evaluate(known, pairs, "scene", wearing, _judges(identity=ByCorner()))

    right, other = labelled(pairs.items), labelled(wrong)
    assert (right.column("id_top1") == 1).all() and (other.column("id_top1") == 0).all() and len(set(people)) > 1
    assert (other.column("id_cosine") < right.column("id_cosine")).all()
    for name in ("pose_error", "expression_distance", "seam", "found"):
        np.testing.assert_allclose(other.column(name), right.column(name), atol=1e-6)


def test_a_turned_head_moves_the_pose_and_not_the_expression(faces):
    import cv2

    turn = 8.0

    def turned(picture, item, seed):
        centre = tuple(float(v) for v in faces.landmarks[item.scene].mean(axis=0))
        return cv2.warpAffine(picture, cv2.getRotationMatrix2D(centre, turn, 1.0), picture.shape[1::-1], borderMode=cv2.BORDER_REFLECT)

    pairs = _pairs(faces, "reconstruct", 6)
    plain, made = _evaluate(faces, pairs), _evaluate(faces, pairs, change=turned)
    assert np.median(made.column("pose_error")) == pytest.approx(turn, abs=1.5)  # roll is in the picture's plane
    assert np.median(plain.column("pose_error")) < 2
    assert np.median(made.column("expression_distance")) < np.median(plain.column("expression_distance")) + 0.05


def test_a_repainted_face_shows_as_a_seam_and_leaves_the_background(faces):
    def pale(picture, item, seed):
        inside = parser("hull").masks(picture[None], faces.landmarks[[item.scene]])[0][..., None] > 0
        return np.where(inside, np.clip(picture.astype(int) + 40, 0, 255), picture).astype(np.uint8)

    pairs = _pairs(faces, "reconstruct", 6)
    made = _evaluate(faces, pairs, change=pale)
    assert (_evaluate(faces, pairs).column("seam") == 0).all()
    # An untouched background beside a lighter face: where the face was the darker side already, the jump may also shrink.
    assert (abs(made.column("seam")) > 1).all() and (made.column("background") == 0).all()


# --- rows ---------------------------------------------------------------------------------------------------------------


def test_rows_name_their_faces_and_mse_is_of_reconstructions_only(faces):
    def lighter(picture, item, seed):
        return np.clip(picture.astype(int) + 10, 0, 255).astype(np.uint8)

    made = _evaluate(faces, _pairs(faces, "reconstruct", 4), change=lighter)
    unclipped = [((np.clip(c + 10.0, 0, 255) - c) ** 2).mean() for c in (faces.crops[faces.ids.index(r["scene"])] for r in made.rows)]
    np.testing.assert_allclose(made.column("mse"), unclipped, rtol=1e-5)
    row = made.rows[2]
    assert row["task"] == "reconstruct" and row["item"] == 2 and row["scene"] == row["identity"] == row["expression"]
    assert row["distinct"] is True and row["found"] is True and row["seed"] == item_seed(0, 2) and row["method"] == "copy"
    assert row["emotion"] == f"mood {faces.ids.index(row['expression'])}" and row.keys() == set(ITEMS.names)
    swapped = _evaluate(faces, _pairs(faces, "all", 2))
    assert all(r[name] is None for r in swapped.rows for name in ("mse", "psnr", "ssim"))


def test_a_failed_output_is_counted_wrong_and_missing_never_zero(faces):
    pairs = _pairs(faces, "all", 5)

    def change(picture, item, seed):
        return {pairs.seeds[1]: np.zeros_like(picture), pairs.seeds[3]: None}.get(seed, picture)

    result = _evaluate(faces, pairs, "identity", change)
    assert [r["found"] for r in result.rows] == [True, False, True, False, True]
    for row in (result.rows[1], result.rows[3]):
        assert row["id_top1"] == 0 and row["id_top5"] == 0
        assert all(row[k] is None for k in ("id_cosine", "id_rank", "expression_distance", "pose_error"))
    assert result.rows[1]["background"] > 0 and result.rows[3]["background"] is None  # there is a picture, and there is none
    assert metrics.bootstrap_interval(result.column("id_top1")).mean == pytest.approx(0.6)
    assert metrics.bootstrap_interval(result.column("id_cosine")).mean == pytest.approx(1.0, abs=1e-6)


def test_no_face_in_any_output(faces):
    result = _evaluate(faces, _pairs(faces, "all", 3), change=lambda picture, item, seed: np.zeros_like(picture))
    assert not result.column("found").any() and result.column("id_top1").sum() == 0
    assert np.isnan(result.column("pose_error")).all()


def test_a_bystander_is_not_taken_for_the_face(faces):
    def bystander(picture, size):
        return [SimpleNamespace(landmarks=faces.landmarks[0] + 100.0)]

    def both(picture, size):
        return [*bystander(picture, size), SimpleNamespace(landmarks=faces.landmarks[0] + 1.0)]

    pairs = pair_list(faces, "reconstruct", [Item(0, 0, 0)], [7])
    assert _evaluate(faces, pairs, find_faces=bystander).rows[0]["found"] is False
    row = _evaluate(faces, pairs, find_faces=both).rows[0]
    assert row["found"] is True and row["pose_error"] == pytest.approx(0, abs=0.1)


def test_noise_belongs_to_the_item_and_batches_change_nothing(faces):
    def noisy(picture, item, seed):
        return np.clip(picture + np.random.default_rng(seed).normal(0, 6, picture.shape), 0, 255).astype(np.uint8)

    pairs, steps = _pairs(faces, "identity", 5, seed=7), []
    one = _evaluate(faces, pairs, "identity", noisy, batch=1)
    many = _evaluate(faces, pairs, "identity", noisy, batch=4, progress=lambda done, of: steps.append((done, of)))
    assert steps == [(4, 5), (5, 5)] and len({row["seed"] for row in one.rows}) == 5
    for a, b in zip(one.rows, many.rows, strict=True):
        assert a.keys() == b.keys()
        assert all(a[k] == pytest.approx(b[k], abs=1e-5) if isinstance(a[k], float) else a[k] == b[k] for k in a)


# --- shared and stored --------------------------------------------------------------------------------------------------


def test_the_photographs_are_looked_at_once_for_all_methods_and_tasks(faces):
    judge = _Pixels()
    references = References(faces, _judges(identity=judge))
    for task in ("all", "identity"):
        for role in ("scene", "identity"):
            evaluate(Outputs(None, Copy(faces, role), _pairs(faces, task, 12), faces), references)
    assert judge.seen == 6 + 4 * 12  # six photographs, and every output


def test_fid_is_between_the_outputs_and_the_photographs(faces):
    def features(pictures):
        return pictures.mean(axis=(1, 2))

    pairs = pair_list(faces, "reconstruct", [Item(i, i, i) for i in range(6)], list(range(6)))
    same = _evaluate(faces, pairs, judges=_judges(inception=features))
    assert same.fid == pytest.approx(0, abs=1e-6) and same.fid_note == "between 6 outputs and 6 photographs"
    shifted = _evaluate(faces, pairs, change=lambda p, i, s: np.maximum(p, 3) - np.uint8(3), judges=_judges(inception=features))
    assert shifted.fid == pytest.approx(27, rel=0.1)  # three channels by almost 3 each
    without = _evaluate(faces, pairs, judges=_judges(absent={"fid": "missing: inception"}))
    assert without.fid is None and without.fid_note == "missing: inception" and without.judges["fid"] == "missing: inception"


def test_what_was_saved_is_read_again(faces, tmp_path):
    result = _evaluate(faces, _pairs(faces, "all", 4), change=lambda picture, item, seed: None)
    result.save(tmp_path / "copy", version="1")
    again = Result.load(tmp_path / "copy")
    assert again == result and again.outputs is None  # rows with nothing in them too
    assert tables.read(tmp_path / "copy" / "items.parquet").schema.names == ITEMS.names
    (tmp_path / "copy" / "method.json").unlink()
    with pytest.raises(OSError):
        Result.load(tmp_path / "copy")
