"""Reading and writing images: depth, channels, orientation, profile, and what is refused."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms
from skimage import data

from srq_nni.errors import DataError, WriteError
from srq_nni.speedup.upscale import Picture, pictures, read_picture, write_picture

PHOTO = np.ascontiguousarray(data.astronaut()[100:117, 150:173])  # 17 rows, 23 columns
DEEP = np.random.default_rng(0).integers(0, 65536, (17, 23, 3)).astype(np.uint16)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".bmp", ".PNG"])
@pytest.mark.parametrize("channels", [1, 3])
def test_8_bits_survive(suffix: str, channels: int, tmp_path: Path) -> None:
    written = Picture(PHOTO[..., :channels])
    write_picture(written, tmp_path / f"photo{suffix}")
    read = read_picture(tmp_path / f"photo{suffix}")
    assert read.pixels.dtype == np.uint8 and read.alpha is None
    assert np.array_equal(read.pixels, written.pixels)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("with_alpha", [False, True])
@pytest.mark.parametrize("deep", [False, True])
def test_depth_alpha_and_profile_survive(
    suffix: str, channels: int, with_alpha: bool, deep: bool, tmp_path: Path
) -> None:
    pixels = DEEP if deep else PHOTO
    if deep and suffix == ".png" and not hasattr(cv2, "IMAGE_METADATA_CICP"):
        pytest.skip("this OpenCV writes no profile into PNG files")
    written = Picture(pixels[..., :channels], pixels[..., 1] if with_alpha else None, PROFILE)
    write_picture(written, tmp_path / f"photo{suffix}")
    read = read_picture(tmp_path / f"photo{suffix}")
    assert read.pixels.dtype == pixels.dtype
    if deep and with_alpha and channels == 1:  # no grey with alpha in 16 bits
        assert np.array_equal(read.pixels, written.pixels.repeat(3, 2))
    else:
        assert np.array_equal(read.pixels, written.pixels)
    assert (read.alpha is not None) == with_alpha
    assert written.alpha is None or np.array_equal(read.alpha, written.alpha)
    assert read.profile == PROFILE


@pytest.mark.parametrize(
    ("picture", "name", "kept"),
    [
        (Picture(DEEP[..., :1], DEEP[..., 1]), "x.png", False),
        (Picture(DEEP[..., :1], DEEP[..., 1]), "x.tif", False),
        (Picture(PHOTO[..., :1]), "x.webp", False),
        (Picture(DEEP[..., :1]), "x.tif", True),
        (Picture(PHOTO[..., :1], PHOTO[..., 1]), "x.png", True),
    ],
    ids=["16 bits, alpha, png", "16 bits, alpha, tif", "webp", "16 bits", "8 bits, alpha"],
)
def test_a_profile_of_grey_stays_with_grey(picture: Picture, name: str, kept: bool, tmp_path: Path) -> None:
    profile = bytearray(PROFILE)
    profile[16:20] = b"GRAY"
    write_picture(replace(picture, profile=bytes(profile)), tmp_path / name)
    read = read_picture(tmp_path / name)
    assert read.pixels.shape[2] == (1 if kept else 3)
    assert read.profile == (bytes(profile) if kept else None)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_formats_keep_the_profile_and_stay_close(suffix: str, tmp_path: Path) -> None:
    photo = np.ascontiguousarray(data.astronaut()[:128, 100:228])
    write_picture(Picture(photo, None, PROFILE), tmp_path / f"photo{suffix}")
    read = read_picture(tmp_path / f"photo{suffix}")
    assert read.profile == PROFILE
    assert np.abs(read.pixels.astype(int) - photo).mean() < 4


def test_tiff_and_png_of_other_programs(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "deep.tif", DEEP, photometric="rgb", byteorder=">")
    assert np.array_equal(read_picture(tmp_path / "deep.tif").pixels, DEEP)
    Image.fromarray(DEEP[..., 0]).save(tmp_path / "grey.png")
    assert np.array_equal(read_picture(tmp_path / "grey.png").pixels, DEEP[..., :1])
    cv2.imwrite(str(tmp_path / "deep.ppm"), DEEP[..., ::-1])
    assert np.array_equal(read_picture(tmp_path / "deep.ppm").pixels, DEEP)


def test_palettes_bits_and_grey_alpha_become_plain_channels(tmp_path: Path) -> None:
    palette = Image.fromarray(PHOTO).quantize(16)
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(read_picture(tmp_path / "palette.png").pixels, np.asarray(palette.convert("RGB")))
    palette.save(tmp_path / "clear.png", transparency=3)
    clear = read_picture(tmp_path / "clear.png")
    assert clear.alpha is not None
    assert np.array_equal(clear.alpha == 0, np.asarray(palette) == 3)
    bits = Image.fromarray(PHOTO).convert("1")
    bits.save(tmp_path / "bits.png")
    assert np.array_equal(read_picture(tmp_path / "bits.png").pixels[..., 0], np.asarray(bits) * np.uint8(255))
    Image.fromarray(PHOTO[..., :2]).save(tmp_path / "grey_alpha.png")
    grey = read_picture(tmp_path / "grey_alpha.png")
    assert np.array_equal(grey.pixels, PHOTO[..., :1]) and np.array_equal(grey.alpha, PHOTO[..., 1])
    Image.fromarray(PHOTO).save(tmp_path / "still.gif")
    assert read_picture(tmp_path / "still.gif").pixels.shape == (17, 23, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif", ".deep.png", ".deep.tif"])
def test_orientation_is_applied(orientation: int, suffix: str, tmp_path: Path) -> None:
    """Pillow turns the 8-bit images; those of 16 bits have to come out alike."""
    path = tmp_path / f"turned{suffix}"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    if "deep" not in suffix:
        Image.fromarray(PHOTO).save(path, exif=exif)
    elif suffix == ".deep.tif":
        tifffile.imwrite(
            path, PHOTO.astype(np.uint16) * 257, photometric="rgb", extratags=[(274, "H", 1, orientation, True)]
        )
    else:
        cv2.imwrite(str(path), PHOTO[..., ::-1].astype(np.uint16) * 257)
        path.write_bytes(with_chunk(path.read_bytes(), b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    methods: dict[int, Any] = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    image = Image.fromarray(PHOTO)
    expected = np.asarray(image if orientation == 1 else image.transpose(methods[orientation]))
    assert np.array_equal(read_picture(path).pixels, expected * np.uint16(257) if "deep" in suffix else expected)


@pytest.mark.parametrize(
    "field",
    [struct.pack(">HI4s", 2, 4, b"abc\0"), struct.pack(">HI4s", 7, 1, b"\6\0\0\0"), struct.pack(">HIHH", 3, 1, 9, 0)],
)
def test_an_orientation_that_is_none_is_upright(field: bytes, tmp_path: Path) -> None:
    """A text, bytes, and a number beyond 8."""
    exif = b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">H", 274) + field + bytes(4)
    Image.fromarray(PHOTO).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read_picture(tmp_path / "x.png").pixels, PHOTO)
    content = cv2.imencode(".png", DEEP[..., ::-1])[1].tobytes()
    (tmp_path / "deep.png").write_bytes(with_chunk(content, b"eXIf", exif))
    assert np.array_equal(read_picture(tmp_path / "deep.png").pixels, DEEP)


def test_an_orientation_that_is_text_in_a_deep_tiff(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", DEEP, photometric="rgb", extratags=[(274, "s", 4, "abc", True)])
    assert np.array_equal(read_picture(tmp_path / "x.tif").pixels, DEEP)


def with_chunk(png: bytes, name: bytes, content: bytes) -> bytes:
    """Return a PNG with one more chunk behind its header."""
    chunk = struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return png[:33] + chunk + png[33:]


def huge_png(width: int, height: int) -> bytes:
    """Return a small PNG whose header claims ``width`` x ``height`` pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header
    start += struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return with_chunk(start + end, b"IDAT", zlib.compress(b"\0" * 1000))


def test_a_huge_image_is_refused_by_its_header(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(huge_png(100_000, 100_000))
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(DataError) as error:
        read_picture(tmp_path / "bomb.png")
    assert str(error.value) == (
        f"'{tmp_path}/bomb.png' has 100000 x 100000 pixels and the limit is 89478485; raise it with "
        "--max-pixels 10000000000 if the memory is there"
    )
    assert limit == Image.MAX_IMAGE_PIXELS
    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    with pytest.raises(DataError, match=r"has 23 x 17 pixels and the limit is 390; raise it with --max-pixels 391 if"):
        read_picture(tmp_path / "photo.png", max_pixels=390)
    assert read_picture(tmp_path / "photo.png", max_pixels=391).size == (17, 23)


def test_the_limit_can_be_raised_above_that_of_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_picture(tmp_path / "photo.png", max_pixels=391).size == (17, 23)


def broken(kind: str, path: Path) -> None:
    image = Image.fromarray(PHOTO)
    if kind == "text":
        path.write_text("no image")
    elif kind == "empty":
        path.touch()
    elif kind == "cut":
        Image.fromarray(data.astronaut()).save(path, "PNG")
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "cut deep":
        content = cv2.imencode(".png", DEEP)[1].tobytes()
        path.write_bytes(content[: len(content) // 2])
    elif kind == "frames":
        image.save(path, "GIF", save_all=True, append_images=[image.rotate(180)])
    elif kind == "cmyk":
        image.convert("CMYK").save(path, "JPEG")
    elif kind == "float":
        Image.fromarray(DEEP[..., 0].astype(np.float32)).save(path, "TIFF")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("missing", "cannot be read (No such file or directory); give a whole image file"),
        ("text", "is no image that Pillow can read; give a PNG, JPEG, WebP, TIFF or BMP file"),
        ("empty", "is no image that Pillow can read; give a PNG, JPEG, WebP, TIFF or BMP file"),
        ("cut", "cannot be read (image file is truncated"),
        ("cut deep", "cannot be read (image file is truncated"),
        ("frames", "has several frames or pages; give single images"),
        ("cmyk", "has pixels of mode CMYK; give grey or RGB pixels of 8 or 16 bits, with alpha or without"),
        ("float", "has pixels of mode F; give grey or RGB pixels of 8 or 16 bits, with alpha or without"),
    ],
)
def test_what_cannot_be_read(kind: str, text: str, tmp_path: Path) -> None:
    broken(kind, tmp_path / "image")
    with pytest.raises(DataError) as error:
        read_picture(tmp_path / "image")
    assert str(error.value).startswith(f"'{tmp_path}/image' {text}")


@pytest.mark.parametrize(
    ("picture", "name", "text"),
    [
        (
            Picture(PHOTO),
            "x.gif",
            "'x.gif' has no known ending; give one of .png, .jpg, .jpeg, .webp, .tif, .tiff, .bmp",
        ),
        (Picture(DEEP), "x.jpg", "'x.jpg': JPEG holds 8 bits and the image has 16; write .png or .tif"),
        (
            Picture(PHOTO, PHOTO[..., 0]),
            "x.jpg",
            "'x.jpg': JPEG has no transparency and the image has; write .png, .tif or .webp",
        ),
        (Picture(PHOTO), "file/x.png", "cannot be written: File exists; give another path"),
        (
            Picture(np.zeros((1, 16384, 3), np.uint8)),
            "x.webp",
            "WEBP cannot hold 16384 x 1 pixels (encoding error 5",
        ),
    ],
    ids=["ending", "depth", "alpha", "place", "size"],
)
def test_what_cannot_be_written(picture: Picture, name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises((DataError, WriteError)) as error:
        write_picture(picture, tmp_path / name)
    assert text in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_profile_is_not_lost_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pictures.cv2, "imencodeWithMetadata", raising=False)
    with pytest.raises(
        DataError, match=r"cannot keep the colour profile in a PNG of 16 bits; update opencv-python, or"
    ):
        write_picture(Picture(DEEP, None, PROFILE), tmp_path / "x.png")
    write_picture(Picture(DEEP), tmp_path / "x.png")
    assert np.array_equal(read_picture(tmp_path / "x.png").pixels, DEEP)
