"""Decoding against expected values, hostile files, conversions, writing."""

from __future__ import annotations

import io
import os
import pickle
import resource
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffsfsr.errors import InputError
from diffsfsr.face import images
from diffsfsr.face.images import Rejected


def _encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _reason(data: bytes, **options: int) -> str:
    with pytest.raises(Rejected) as caught:
        images.decode(data, **options)
    assert caught.value.detail and "\n" not in caught.value.detail
    return caught.value.reason


def _picture(height: int = 12, width: int = 20) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _png(width: int, height: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# --- what decodes, against expected values --------------------------------------------------------------------------

_UPRIGHT = {  # EXIF 2.3, tag 0x0112: how the stored picture is turned upright
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
    8: lambda x: np.rot90(x, 1),
}


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", _UPRIGHT)
def test_exif_orientation(orientation: int, format: str) -> None:
    stored, exif = _picture(), Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = _encoded(Image.fromarray(stored), format, exif=exif, **options)
    np.testing.assert_array_equal(images.decode(data), _UPRIGHT[orientation](stored))


def test_damaged_exif_does_not_lose_the_picture() -> None:
    data = _encoded(Image.fromarray(_picture()), "PNG", exif=b"Exif\0\0MM\0*\0\0\xff\xff broken")
    np.testing.assert_array_equal(images.decode(data), _picture())


def test_grey_palette_and_one_bit() -> None:
    grey = _picture()[..., 0]
    np.testing.assert_array_equal(images.decode(_encoded(Image.fromarray(grey), "PNG")), np.stack([grey] * 3, axis=2))
    bits = grey > 127
    expected = np.stack([bits * np.uint8(255)] * 3, axis=2)
    np.testing.assert_array_equal(images.decode(_encoded(Image.fromarray(bits), "PNG")), expected)
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putdata([0, 1])
    np.testing.assert_array_equal(images.decode(_encoded(palette, "PNG")), [[[10, 20, 30], [200, 100, 50]]])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_lies_on_white(mode: str) -> None:
    rgba = np.random.default_rng(1).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    if mode == "LA":
        rgba[..., 1] = rgba[..., 2] = rgba[..., 0]
    alpha = rgba[..., 3:] / 255.0
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    image = Image.fromarray(rgba) if mode == "RGBA" else Image.fromarray(np.ascontiguousarray(rgba[..., [0, 3]]), "LA")
    np.testing.assert_allclose(images.decode(_encoded(image, "PNG")), expected, atol=1)


def test_a_transparent_palette_colour_lies_on_white() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putdata([0, 1])
    expected = [[[255, 255, 255], [200, 100, 50]]]
    np.testing.assert_array_equal(images.decode(_encoded(palette, "PNG", transparency=0)), expected)


@pytest.mark.parametrize("format", ["TIFF", "JPEG"])
def test_cmyk(format: str) -> None:
    ink = np.full((16, 16, 4), (30, 120, 200, 60), np.uint8)
    expected = [(255 - c) * (255 - 60) / 255 for c in (30, 120, 200)]
    options = {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    decoded = images.decode(_encoded(Image.fromarray(ink, "CMYK"), format, **options))
    np.testing.assert_allclose(decoded.reshape(-1, 3), np.tile(expected, (256, 1)), atol=3)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(format: str) -> None:
    ramp = np.linspace(0, 65535, 512).astype(np.uint16).reshape(2, 256)
    expected = np.rint(ramp / 257)
    np.testing.assert_array_equal(images.decode(_encoded(Image.fromarray(ramp), format))[..., 1], expected)


@pytest.mark.parametrize("full", [1.0, 255.0, 65535.0])
def test_float_samples(full: float) -> None:
    ramp = np.linspace(0, full, 256, dtype=np.float32).reshape(1, 256)
    np.testing.assert_allclose(images.decode(_encoded(Image.fromarray(ramp), "TIFF"))[0, :, 0], np.arange(256), atol=1)
    odd = np.array([[np.nan, np.inf, -1.0, 1.0]], np.float32)
    np.testing.assert_array_equal(images.decode(_encoded(Image.fromarray(odd), "TIFF"))[0, :, 0], [0, 0, 0, 255])


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    data = _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)
    np.testing.assert_array_equal(images.decode(data), np.full((6, 8, 3), (255, 0, 0)))


def test_heic() -> None:
    heif = pytest.importorskip("pillow_heif")
    colour = (200, 90, 40)
    buffer = io.BytesIO()
    heif.from_pillow(Image.new("RGB", (64, 48), colour)).save(buffer, quality=95)
    decoded = images.decode(buffer.getvalue())
    assert decoded.shape == (48, 64, 3)
    np.testing.assert_allclose(decoded.reshape(-1, 3).mean(axis=0), colour, atol=4)
    assert _reason(buffer.getvalue()[:200]) == "unreadable"
    assert _reason(buffer.getvalue(), max_pixels=1000) == "too large"


def test_one_pixel() -> None:
    np.testing.assert_array_equal(images.decode(_encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")), [[[1, 2, 3]]])


# --- hostile input --------------------------------------------------------------------------------------------------


def test_bytes_that_are_no_picture() -> None:
    jpeg = _encoded(Image.fromarray(_picture(200, 200)), "JPEG")
    for data in (b"", b"only text, whatever the name says\n", b"\x00" * 5000, jpeg[:3], jpeg[:300], jpeg[: len(jpeg) // 2]):
        assert _reason(data) == "unreadable"
    for format in ("PNG", "GIF", "WEBP", "TIFF", "BMP"):
        data = _encoded(Image.fromarray(_picture(200, 200)), format)
        assert _reason(data[: len(data) // 2]) == "unreadable", format
    assert _reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n") == "unreadable"


@pytest.mark.parametrize("seed", range(3))
def test_damaged_bytes_decode_or_are_rejected(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for format in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000"):
        good = _encoded(Image.fromarray(_picture(40, 40)), format)
        for _ in range(30):
            bad = np.frombuffer(good, np.uint8).copy()
            bad[rng.integers(0, len(bad), 4)] = rng.integers(0, 256, 4)
            try:
                decoded = images.decode(bad.tobytes(), max_pixels=1_000_000)
            except Rejected as rejected:
                assert rejected.reason in ("unreadable", "too large")
            else:
                assert decoded.dtype == np.uint8 and decoded.ndim == 3


def test_a_bomb_is_refused_from_its_header() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for side in (30_000, 11_000, 60_000):  # below and above Pillow's own warning and refusal
            assert _reason(_png(side, side, b"\0" * 100_000)) == "too large"
        assert _reason(_png(9_700, 9_700, b"\0" * 10), max_pixels=90_000_000) == "too large"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


def _of_scans(more: int, **options: object) -> bytes:
    """A progressive JPEG of six scans, the last of them repeated so many times."""
    data = _encoded(Image.fromarray(_picture()).convert("L"), "JPEG", progressive=True, **options)
    last, end = data.rfind(b"\xff\xda"), data.rfind(b"\xff\xd9")
    return data[:end] + data[last:end] * more + data[end:]


def test_a_jpeg_of_endless_scans_is_refused_undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _of_scans(0).count(b"\xff\xda") == 6
    assert (images.decode(_of_scans(94)) != images.decode(_of_scans(0))).any()  # libjpeg obeys every one of them
    monkeypatch.setattr(images, "_upright", lambda _: pytest.fail("decoded"))
    for data in (_of_scans(95), _of_scans(95).replace(b"\xff\xda", b"\xff\xff\xff\xda"), _of_scans(200_000)):  # a marker may be padded
        with pytest.raises(Rejected, match="more than 100 scans") as caught:
            images.decode(data)
        assert caught.value.reason == "too large"


def test_what_only_looks_like_scans_is_none() -> None:
    """Text in a comment, and whatever follows the end of the picture, as the film in a phone's photograph does."""
    told = images.decode(_of_scans(0, comment=b"\xff\xda\0\2" * 500) + b"\0\2" + b"\xff\xda\0\2" * 500)
    np.testing.assert_array_equal(told, images.decode(_of_scans(0)))


def test_the_limit_is_inclusive() -> None:
    data = _encoded(Image.fromarray(_picture(10, 10)), "PNG")
    assert images.decode(data, max_pixels=100).shape == (10, 10, 3)
    assert _reason(data, max_pixels=99) == "too large"


def test_no_warning_leaks(recwarn: pytest.WarningsRecorder) -> None:
    _reason(_png(9_700, 9_700, b"\0" * 10))  # more than Pillow warns at, less than ours
    palette = Image.new("P", (4, 4))
    palette.putpalette([0, 0, 0, 255, 255, 255])
    images.decode(_encoded(palette, "PNG", transparency=bytes([0, 128])))
    assert not recwarn.list


def test_a_folder_of_hostile_names(tmp_path: Path) -> None:
    good = _encoded(Image.fromarray(_picture()), "PNG")
    for name in ("na\u00efve \u5bb6\u65cf \U0001f600.png", 'it\'s "quoted" $(x); `y`.png', "-rf.png", "a\nb.png", "." + "n" * 250):
        (tmp_path / name).write_bytes(good)
        np.testing.assert_array_equal(images.read(tmp_path / name), _picture())
    (tmp_path / "link.png").symlink_to("-rf.png")
    assert images.read(tmp_path / "link.png").shape == (12, 20, 3)

    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "loop-a.png").symlink_to("loop-b.png")
    (tmp_path / "loop-b.png").symlink_to("loop-a.png")
    (tmp_path / "dangling.png").symlink_to("nowhere.png")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    expected = {
        "empty.png": "empty",
        "text.png": "not a picture",
        "loop-a.png": "loop",
        "dangling.png": "no such file",
        "folder.png": "folder",
        "pipe.png": "pipe",
        "nul\0.png": "null",
        "x" * 300: "name too long",
        "-rf.png/below": "not a directory",
    }
    for name, word in expected.items():
        with pytest.raises(Rejected) as caught:
            images.read(tmp_path / name)
        assert caught.value.reason == "unreadable" and word in caught.value.detail, name
    with pytest.raises(Rejected, match="device"):
        images.read("/dev/zero")


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(_encoded(Image.fromarray(_picture()), "PNG"))
    path.chmod(0)
    if os.geteuid() == 0:  # root may read it all the same

        def refuse(*_: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(Rejected, match="unreadable: permission denied"):
        images.read(path)


def test_a_file_beyond_the_cap_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    with open(path, "wb") as file:
        file.truncate(images.MAX_BYTES + 1)  # sparse
    with pytest.raises(Rejected) as caught:
        images.read(path)
    assert caught.value.reason == "too large"


def test_a_rejection_crosses_processes_whole() -> None:
    there = pickle.loads(pickle.dumps(Rejected("cut off", "30 %")))
    assert (there.reason, there.detail, str(there)) == ("cut off", "30 %", "cut off: 30 %")
    with pytest.raises(ValueError, match="unknown reason"):
        Rejected("ugly")


# --- conversion and writing -----------------------------------------------------------------------------------------


def test_tensors_and_back() -> None:
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    tensor = images.to_tensor(every)
    assert tensor.shape == (1, 3, 16, 16) and str(tensor.dtype) == "torch.float32"
    np.testing.assert_allclose(tensor[0, 1].numpy().reshape(-1), np.arange(256) / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(images.to_uint8(tensor)[0], every)
    np.testing.assert_array_equal(images.to_uint8(images.to_tensor(np.stack([every, 255 - every])))[1], 255 - every)
    beyond = np.rint((np.clip((every / 127.5 - 1) * 9, -1, 1) + 1) * 127.5)
    np.testing.assert_array_equal(images.to_uint8(tensor * 9)[0], beyond)
    with pytest.raises(ValueError, match="uint8"):
        images.to_tensor(every.astype(np.float32))


def test_bgr() -> None:
    np.testing.assert_array_equal(images.to_bgr(_picture())[..., 0], _picture()[..., 2])


def test_resize() -> None:
    grey = np.full((40, 30, 3), 77, np.uint8)
    assert images.resize(grey, (7, 90)).shape == (7, 90, 3) and (images.resize(grey, (7, 90)) == 77).all()
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(images.resize(stripes, (16, 16))[:, 2:-2].astype(int) - 127).max() < 4  # antialiased
    np.testing.assert_array_equal(images.resize(_picture(), (12, 20)), _picture())


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg"])
def test_write_is_whole_or_nothing(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    smooth = images.resize(_picture(4, 4), (64, 64))
    path = tmp_path / "new" / f"out{suffix}"
    images.write_image(path, smooth)
    before = path.read_bytes()
    np.testing.assert_allclose(images.read(path).astype(int), smooth, atol=6 if suffix == ".jpg" else 0)

    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        images.write_image(path, 255 - smooth)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]


def test_write_refuses_other_suffixes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="out.exe"):
        images.write_image(tmp_path / "out.exe", _picture())


def test_png_bytes_are_exact_and_repeatable() -> None:
    data = images.encode_png(_picture())
    assert data == images.encode_png(_picture())
    np.testing.assert_array_equal(images.decode(data), _picture())


def test_contact_sheet() -> None:
    red, tall = np.full((8, 8, 3), (255, 0, 0), np.uint8), np.zeros((40, 10, 3), np.uint8)
    sheet = images.contact_sheet([[red, red], [tall]], cell=32)
    assert sheet.shape == (2 * 33 + 1, 2 * 33 + 1, 3)
    assert (sheet[17, 17] == (255, 0, 0)).all() and (sheet[0] == 255).all()
    assert (sheet[34:, :, 0] == 0).sum() == 32 * 8 and (sheet[34:, 34:] == 255).all()
    assert images.contact_sheet([]).shape[2] == 3


def test_names() -> None:
    assert images.is_image_name("a/B.JPeG") and images.is_image_name(Path("x.heic")) and not images.is_image_name("labels.csv")
