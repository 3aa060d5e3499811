"""Slices: rules on photographs painted for them, labels before proxies, and differences against brute force."""

import numpy as np
import pytest
from synthetic import faces as aligned_faces

from diffsfsr.evaluation.items import Faces
from diffsfsr.evaluation.report import slices
from diffsfsr.face.glasses import levelled
from diffsfsr.face.pose import head_pose


@pytest.fixture(scope="module")
def face(astronaut):
    """A woman without glasses who looks at the camera: crop (128, 128, 3) and landmarks."""
    found = aligned_faces(astronaut, 128)[0]
    return found.crop, found.crop_landmarks


def test_a_frame_painted_on_is_glasses(face):
    crop, points = face
    assert slices.glasses(crop, points) == "no glasses seen"
    worn = crop.copy()
    y, (left, right) = int(points[27, 1]) + 1, points[[36, 45], 0].astype(int)
    worn[y : y + 2, left:right] = 20
    assert slices.glasses(worn, points) == "glasses"
    bigger = worn.repeat(4, axis=0).repeat(4, axis=1), points * 4 + 1.5
    assert slices.glasses(*bigger) == "glasses"
    assert np.abs(levelled(*bigger) - levelled(worn, points)).mean() < 6  # of 255: the same region, whatever the crop's size


def test_light_is_told_by_the_cheeks_and_the_whole(face):
    crop, points = face
    ramp = np.linspace(1.0, 0.15, 128)[None, :, None]
    assert slices.lit(crop, points) == "even"
    assert slices.lit((crop * ramp).astype(np.uint8), points) == "from one side"
    assert slices.lit((crop * 0.4).astype(np.uint8), points) == "dim"


def test_pose_is_sorted_by_yaw(face):
    crop, points = face
    assert abs(head_pose(points).yaw) < 10 and slices.turned(crop, points) == "turned by less than 10 degrees"
    squeezed = points.copy()
    squeezed[27:36, 0] += 9  # the nose to one side
    assert abs(head_pose(squeezed).yaw) >= 10 and slices.turned(crop, squeezed) != "turned by less than 10 degrees"


@pytest.mark.parametrize("colour", [(224, 172, 105), (89, 47, 42), (141, 85, 36), (250, 220, 190)])
def test_the_angle_of_a_plain_colour(face, colour):
    """Against CIE's formulas (sRGB, D65) by scikit-image."""
    from skimage.color import rgb2lab

    lightness, _, yellow = rgb2lab(np.array([[colour]], np.uint8))[0, 0]
    want = np.degrees(np.arctan((lightness - 50) / yellow))
    assert slices.skin_angle(np.full((128, 128, 3), colour, np.uint8), face[1]) == pytest.approx(want, abs=0.5)


def test_shadow_on_one_cheek_is_no_darker_skin(face):
    plain = np.full((128, 128, 3), (224, 172, 105), np.uint8)
    shaded = plain.copy()
    shaded[:, :64] //= 3
    assert slices.skin_angle(shaded, face[1]) == pytest.approx(slices.skin_angle(plain, face[1]), abs=0.5)


def test_skin_tone_is_of_the_person_and_a_label_goes_first(face):
    _, points = face
    dark, light = (np.full((128, 128, 3), colour, np.uint8) for colour in ((89, 47, 42), (250, 220, 190)))
    crops, people = [dark, dark, light, light], ["a", "a", "a", "b"]
    faces = Faces(list("wxyz"), people, crops, np.stack([points] * 4))
    tone = next(a for a in slices.attributes(faces, range(4)) if a.name == "skin tone")
    assert tone.of == {"w": "dark", "x": "dark", "y": "dark", "z": "light"} and tone.proxy and "proxy" in tone.title
    labels = [{"glasses": "yes", "emotion": "joy", "gender": "f"}, {"glasses": "no", "gender": "m"}, {"glasses": "no"}, {}]
    told = {a.name: a for a in slices.attributes(Faces(list("wxyz"), people, crops, np.stack([points] * 4), labels), range(4))}
    assert told["glasses"].of == {"w": "yes", "x": "no", "y": "no", "z": ""} and not told["glasses"].proxy
    assert told["gender"].role == "identity" and "emotion" not in told and not told["pose"].proxy
    rows = [{"identity": i, "scene": "w"} for i in "wxyzx"]
    assert {k: list(v) for k, v in told["gender"].sorted(rows).items()} == {
        "f": [True, *[False] * 4],
        "m": [False, True, False, False, True],
    }


def test_a_gap_is_of_means_and_its_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    values, inside = np.array([1.0, 3.0, np.nan, 10.0, 20.0]), np.array([True, True, True, False, False])
    assert slices.gap(values, inside).mean == 2 - 15 and slices.gap(values, inside).count == 2
    assert np.isnan(slices.gap(values, np.zeros(5, bool)).mean)
    hits = 0
    for trial in range(200):
        inside = np.arange(90) < 30
        got = slices.gap(rng.normal(0, 1, 90) + 0.5 * inside, inside, n=300, seed=trial)
        hits += got.low <= 0.5 <= got.high
    assert 178 <= hits <= 199
