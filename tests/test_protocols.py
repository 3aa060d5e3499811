"""Fixed items, and an evaluation of callables whose right answer is known: copies, mixtures and failures of real photographs."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffsfsr.errors import InputError, NotReady
from diffsfsr.evaluation import metrics
from diffsfsr.evaluation.protocols import Faces, Item, evaluate, item_seed, make_items
from diffsfsr.face import alignment
from diffsfsr.face.images import read, to_tensor

# --- items --------------------------------------------------------------------------------------------------------------

PEOPLE = [f"p{i % 20}" for i in range(60)]
IDS = [f"set/{i:03d}/0" for i in range(60)]
SPLIT = ["test" if i % 20 < 12 else "train" for i in range(60)]


def _people(item):
    return PEOPLE[item.scene], PEOPLE[item.identity], PEOPLE[item.expression]


def test_swap_all_takes_three_people_of_the_split():
    items = make_items(IDS, PEOPLE, SPLIT, "all", 200, seed=1)
    assert len(items) == 200
    assert all(len(set(_people(item))) == 3 for item in items)
    assert all(SPLIT[i] == "test" for item in items for i in (item.scene, item.identity, item.expression))


def test_the_tasks_are_choices_of_input():
    swap_id = make_items(IDS, PEOPLE, SPLIT, "identity", 50, seed=1)
    assert all(i.expression == i.scene and PEOPLE[i.identity] != PEOPLE[i.scene] for i in swap_id)
    swap_exp = make_items(IDS, PEOPLE, SPLIT, "expression", 50, seed=1)
    assert all(i.identity == i.scene and PEOPLE[i.expression] != PEOPLE[i.scene] for i in swap_exp)
    assert all(i.scene == i.identity == i.expression for i in make_items(IDS, PEOPLE, SPLIT, "reconstruct", 50, seed=1))


def test_items_are_fixed_by_the_seed_and_not_by_the_order_of_the_table():
    def named(order, seed=3):
        items = make_items([IDS[i] for i in order], [PEOPLE[i] for i in order], [SPLIT[i] for i in order], "all", 40, seed)
        return [(order[i.scene], order[i.identity], order[i.expression]) for i in items]

    plain = list(range(60))
    shuffled = np.random.default_rng(0).permutation(60).tolist()
    assert named(plain) == named(plain) == named(shuffled)
    assert named(plain) != named(plain, seed=4)


def test_roles_are_spread_evenly_over_people():
    items = make_items(IDS, PEOPLE, SPLIT, "all", 120, seed=5)
    for role in ("scene", "identity", "expression"):
        counts = {p: sum(PEOPLE[getattr(i, role)] == p for i in items) for p in set(PEOPLE[:12])}
        assert len(counts) == 12 and max(counts.values()) - min(counts.values()) <= 4
    first = make_items(IDS, PEOPLE, SPLIT, "all", 12, seed=5)
    assert len({PEOPLE[i.identity] for i in first}) >= 11  # as many people to choose among as there are


def test_few_people_and_nameless_faces():
    two = make_items(["a", "b", "c"], ["ann", "ann", "bob"], ["test"] * 3, "all", 30, seed=0)
    assert all(len({i.scene, i.identity, i.expression}) == 3 for i in two)
    assert all(2 in (i.scene, i.identity) for i in two)  # the identity is of the other person, and then none is left
    assert make_items(["a"], ["ann"], ["test"], "all", 2, seed=0) == [Item(0, 0, 0)] * 2
    nameless = make_items(["a", "b", "c"], ["", "", ""], ["train"] * 3, "all", 9, seed=0, use=None)
    assert all(len({i.scene, i.identity, i.expression}) == 3 for i in nameless)


def test_unusable_requests_are_refused():
    with pytest.raises(InputError, match="'swap'.*all, identity, expression, reconstruct"):
        make_items(IDS, PEOPLE, SPLIT, "swap", 5, seed=0)
    with pytest.raises(InputError, match="on 0 items"):
        make_items(IDS, PEOPLE, SPLIT, "all", 0, seed=0)
    with pytest.raises(NotReady, match="'test'"):
        make_items(["a"], ["ann"], ["train"], "all", 1, seed=0)


# --- evaluation ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faces(six_people):
    found = alignment.align_all(read(six_people), 128)
    assert len(found) == 6
    ids, people = [f"t1/{i}" for i in range(6)], [f"person {i}" for i in range(6)]
    return Faces(ids, people, [f.crop for f in found], np.stack([f.crop_landmarks for f in found]))


class _Pixels:
    """A judge that sees the picture itself, shrunk: a copy is its own source, and nothing else is."""

    name, version, independent, centred = "pixels", "0", True, True

    def __call__(self, images, landmarks):
        return torch.nn.functional.adaptive_avg_pool2d(images, 12).flatten(1)


def _expression(images, landmarks):
    """Mouth opening and width over the distance of the eyes, from the landmarks alone."""
    eyes = (landmarks[:, 36:42].mean(1) - landmarks[:, 42:48].mean(1)).norm(dim=1)
    opening = (landmarks[:, 62] - landmarks[:, 66]).norm(dim=1)
    return torch.stack([opening, (landmarks[:, 48] - landmarks[:, 54]).norm(dim=1)], 1) / eyes[:, None]


def _copy(faces, role):
    def generate(items, seeds):
        return torch.cat([to_tensor(faces.crops[getattr(item, role)]) for item in items])

    return generate


def _evaluate(faces, items, generate, task="all", **options):
    return evaluate(items, faces, generate, _Pixels(), _expression, task=task, **options)


def _items(faces, task, n=12):
    return make_items(faces.ids, faces.people, ["test"] * 6, task, n, seed=0)


def test_copied_identities_score_100_and_another_role_does_not(faces):
    items = _items(faces, "all")
    copied = _evaluate(faces, items, _copy(faces, "identity"))
    assert copied.column("found").all() and copied.gallery == len({i.identity for i in items})
    assert copied.column("id_top1").mean() == 1 and (copied.column("id_rank") == 1).all()
    np.testing.assert_allclose(copied.column("id_cosine"), 1, atol=1e-6)
    assert (copied.column("pose_error") > 1).all()  # heads of six people in a group do not all point one way
    scene = _evaluate(faces, items, _copy(faces, "scene"))
    assert scene.column("id_top1").mean() == 0
    found_again = scene.column("pose_error")  # in the crop of 64 pixels, where the one turned face is 8 degrees off
    assert np.sort(found_again)[-3] < 2 and found_again.max() < 10
    assert scene.column("pose_error").mean() < copied.column("pose_error").mean() / 2
    expression = _evaluate(faces, items, _copy(faces, "expression"))
    assert expression.column("expression_distance").mean() < 0.5 * scene.column("expression_distance").mean()


def test_a_common_part_of_all_embeddings_is_no_likeness(faces):
    """dlib's strangers have cosines of about .84: for such a judge the mean over the sources is subtracted first."""

    class Crowded(_Pixels):
        def __call__(self, images, landmarks):
            return super().__call__(images, landmarks) + 50.0

    items = _items(faces, "all")
    raw, centred = Crowded(), Crowded()
    raw.centred = False
    values = [evaluate(items, faces, _copy(faces, "scene"), j, _expression, task="all").column("id_cosine") for j in (raw, centred)]
    assert (values[0] > 0.99).all() and abs(values[1].mean()) < 0.5


def test_rows_name_their_faces_and_mse_is_of_reconstructions_only(faces):
    made = _evaluate(faces, _items(faces, "reconstruct", 4), lambda i, s: _copy(faces, "scene")(i, s) + 10 / 127.5, task="reconstruct")
    unclipped = [((np.clip(c + 10.0, 0, 255) - c) ** 2).mean() for c in (faces.crops[faces.ids.index(r["scene"])] for r in made.rows)]
    np.testing.assert_allclose(made.column("mse"), unclipped, rtol=1e-5)
    row = made.rows[2]
    assert row["task"] == "reconstruct" and row["item"] == 2 and row["scene"] == row["identity"] == row["expression"]
    assert row["distinct"] is True and row["found"] is True and row["seed"] == item_seed(0, 2)
    swapped = _evaluate(faces, _items(faces, "all", 2), _copy(faces, "scene"))
    assert [r["mse"] for r in swapped.rows] == [None, None]


def test_a_failed_output_is_counted_wrong_and_missing_never_zero(faces):
    items = _items(faces, "all", 5)

    def generate(part, seeds):
        made = _copy(faces, "identity")(part, seeds)
        for place, item in enumerate(part):
            if item in (items[1], items[3]):
                made[place] = 0.0 if item == items[1] else float("nan")
        return made

    result = _evaluate(faces, items, generate)
    assert [r["found"] for r in result.rows] == [True, False, True, False, True]
    for row in (result.rows[1], result.rows[3]):
        assert row["id_top1"] == 0 and row["id_top5"] == 0
        assert all(row[k] is None for k in ("id_cosine", "id_rank", "expression_distance", "pose_error"))
    assert metrics.bootstrap_interval(result.column("id_top1")).mean == pytest.approx(0.6)
    assert metrics.bootstrap_interval(result.column("id_cosine")).mean == pytest.approx(1.0, abs=1e-6)


def test_no_face_in_any_output(faces):
    result = _evaluate(faces, _items(faces, "all", 3), lambda items, seeds: torch.zeros(len(items), 3, 128, 128))
    assert not result.column("found").any() and result.column("id_top1").sum() == 0
    assert np.isnan(result.column("pose_error")).all()


def test_a_bystander_is_not_taken_for_the_face(faces):
    def bystander(picture, size):
        return [SimpleNamespace(landmarks=faces.landmarks[0] + 100.0)]

    def both(picture, size):
        return [*bystander(picture, size), SimpleNamespace(landmarks=faces.landmarks[0] + 1.0)]

    items = [Item(0, 0, 0)]
    assert _evaluate(faces, items, _copy(faces, "scene"), "reconstruct", find_faces=bystander).rows[0]["found"] is False
    row = _evaluate(faces, items, _copy(faces, "scene"), "reconstruct", find_faces=both).rows[0]
    assert row["found"] is True and row["pose_error"] == pytest.approx(0, abs=0.1)


def test_noise_belongs_to_the_item_and_batches_change_nothing(faces):
    seen = {}

    def generate(items, seeds):
        seen.update(zip(seeds, items, strict=True))
        noise = [torch.randn(3, 128, 128, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return _copy(faces, "identity")(items, seeds) + 0.05 * torch.stack(noise)

    items, steps = _items(faces, "identity", 5), []
    one = _evaluate(faces, items, generate, "identity", batch=1, seed=7)
    many = _evaluate(faces, items, generate, "identity", batch=4, seed=7, progress=lambda done, of: steps.append((done, of)))
    assert len(seen) == 5 and steps == [(4, 5), (5, 5)]
    for a, b in zip(one.rows, many.rows, strict=True):
        assert a.keys() == b.keys()
        assert all(a[k] == pytest.approx(b[k], abs=1e-5) if isinstance(a[k], float) else a[k] == b[k] for k in a)
    assert all((x == y).all() for a, b in zip(one.pictures, many.pictures, strict=True) for x, y in zip(a, b, strict=True))


def test_pictures_are_of_the_first_items_in_four_rows(faces):
    items = _items(faces, "all", 5)
    result = _evaluate(faces, items, _copy(faces, "identity"), pictures=3, batch=2)
    assert [len(row) for row in result.pictures] == [3, 3, 3, 3]
    scene, identity, expression, output = result.pictures
    assert all((faces.crops[item.scene] == picture).all() for item, picture in zip(items, scene, strict=False))
    assert all((a == b).all() for a, b in zip(identity, output, strict=True))


def test_a_generator_that_returns_something_else_is_refused(faces):
    with pytest.raises(ValueError, match=r"\(1, 3, 64, 64\) for 2 items with crops of side 128"):
        _evaluate(faces, _items(faces, "all", 2), lambda items, seeds: torch.zeros(1, 3, 64, 64))
