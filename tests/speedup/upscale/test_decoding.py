"""Images of more than 8 bits come out with the values a viewer shows, or are refused; and damage is one sentence."""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFile

from srq_nni.errors import DataError
from srq_nni.speedup.upscale import read_picture

RGB = np.array([[[65535, 100, 200], [1, 2, 3]]], np.uint16)
LEVELS = np.array([[0, 32768, 65535]], np.uint16)
LOSSLESS = {
    ".jp2": [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000],
    ".avif": [cv2.IMWRITE_AVIF_QUALITY, 100],
}
needs_avif = pytest.mark.skipif(not cv2.haveImageWriter(".avif"), reason="OpenCV has no encoder of AVIF")


def png(width: int, colour: int, pixels: np.ndarray, clear: tuple[int, ...] | None) -> bytes:
    """Return a PNG of 16 bits and one row; ``colour`` is the type of its header."""
    header = struct.pack(">IIBBBBB", width, 1, 16, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" + pixels.astype(">u2").tobytes())), (b"IEND", b"")]
    if clear is not None:
        chunks.insert(1, (b"tRNS", struct.pack(f">{len(clear)}H", *clear)))
    sealed = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(sealed)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"P5\n3 1\n1023\n" + struct.pack(">3H", 0, 512, 1023), [[0], [32800], [65535]]),
        (b"P6\n1 1\n1023\n" + struct.pack(">3H", 0, 512, 1023), [[0, 32800, 65535]]),
        (b"P2\n3 1\n4095\n0 2048 4095\n", [[0], [32776], [65535]]),
        (b"P3\n1 1\n256\n0 1 255\n", [[0, 256, 65279]]),
        (b"P5\n2 1\n65535\n" + struct.pack(">2H", 7, 65535), [[7], [65535]]),
        (b"P5\n3 1\n15\n\x00\x07\x0f", [[0], [119], [255]]),
    ],
    ids=["grey", "colour", "grey text", "colour text", "all bits", "8 bits"],
)
def test_the_largest_value_of_a_ppm_is_white(content: bytes, expected: list[list[int]], tmp_path: Path) -> None:
    (tmp_path / "x.ppm").write_bytes(content)
    pixels = read_picture(tmp_path / "x.ppm").pixels
    assert pixels[0].tolist() == expected
    assert pixels.dtype == (np.uint8 if max(map(max, expected)) == 255 else np.uint16)


@pytest.mark.parametrize(
    ("pixels", "options", "expected", "alpha"),
    [
        (LEVELS, {"photometric": "miniswhite"}, [[65535], [32767], [0]], None),
        (RGB.transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate"}, RGB[0].tolist(), None),
        (
            np.array([[[32768, 16384, 40000, 32768], [9, 9, 9, 0]]], np.uint16),
            {"photometric": "rgb", "extrasamples": ["assocalpha"]},
            [[65535, 32768, 65535], [65535, 65535, 65535]],
            [32768, 0],
        ),
        (
            np.array([[[32768]], [[16384]], [[0]], [[32768]]], np.uint16),
            {"photometric": "rgb", "planarconfig": "separate", "extrasamples": ["assocalpha"]},
            [[65535, 32768, 0]],
            [32768],
        ),
        (
            np.array([[[32768, 16384, 0, 5]]], np.uint16),
            {"photometric": "rgb", "extrasamples": ["unassalpha"]},
            [[32768, 16384, 0]],
            [5],
        ),
        (
            np.array([[[32768, 16384, 0, 5]]], np.uint16),
            {"photometric": "rgb", "extrasamples": ["unspecified"]},
            [[32768, 16384, 0]],
            None,
        ),
    ],
    ids=["white is 0", "planes", "premultiplied", "premultiplied planes", "alpha", "no alpha"],
)
def test_layouts_of_tiff(
    pixels: np.ndarray, options: dict[str, object], expected: list[list[int]], alpha: list[int] | None, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "x.tif", pixels, **options)
    picture = read_picture(tmp_path / "x.tif")
    assert picture.pixels.dtype == np.uint16 and picture.pixels[0].tolist() == expected
    assert (None if picture.alpha is None else picture.alpha[0].tolist()) == alpha


@pytest.mark.parametrize(
    ("colour", "pixels", "clear", "expected", "alpha"),
    [
        (0, LEVELS, (32768,), [[0], [32768], [65535]], [65535, 0, 65535]),
        (2, RGB, (1, 2, 3), RGB[0].tolist(), [65535, 0]),
        (4, np.array([[[1000, 2000]]], np.uint16), None, [[1000]], [2000]),
        (6, np.array([[[1, 2, 3, 4]]], np.uint16), None, [[1, 2, 3]], [4]),
    ],
    ids=["grey", "colour", "grey with alpha", "colour with alpha"],
)
def test_transparency_of_png(
    colour: int,
    pixels: np.ndarray,
    clear: tuple[int, ...] | None,
    expected: list[list[int]],
    alpha: list[int],
    tmp_path: Path,
) -> None:
    (tmp_path / "x.png").write_bytes(png(pixels.shape[1], colour, pixels, clear))
    picture = read_picture(tmp_path / "x.png")
    assert picture.pixels.dtype == np.uint16 and picture.pixels[0].tolist() == expected
    assert picture.alpha is not None and picture.alpha[0].tolist() == alpha


# Two pixels, (4095, 0, 2048) and (1, 2, 3).
JPEG_2000_OF_12_BITS = base64.b64decode(
    "/0//UQAvAAAAAAACAAAAAQAAAAAAAAAAAAAAAgAAAAEAAAAAAAAAAAADCwEBCwEBCwEB/1IADAAAAAEBAAQEAAH/XAAEQGD/ZAAlAAFDcmVhdGVk"
    "IGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAAAhAAH/k8/kEAvFWoPf4AwE8n/f4AwEJd//2Q=="
)


def test_jpeg_2000_of_12_bits(tmp_path: Path) -> None:
    (tmp_path / "x.j2k").write_bytes(JPEG_2000_OF_12_BITS)
    assert read_picture(tmp_path / "x.j2k").pixels.tolist() == [[[65535, 0, 32776], [16, 32, 48]]]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_jpeg_2000_of_16_bits(channels: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (40, 48, channels), np.uint16)
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
    assert cv2.imwrite(str(tmp_path / "x.jp2"), pixels[..., order], LOSSLESS[".jp2"])
    picture = read_picture(tmp_path / "x.jp2")
    alpha = [] if picture.alpha is None else [picture.alpha[..., None]]
    assert np.array_equal(np.concatenate([picture.pixels, *alpha], 2), pixels)


@needs_avif
@pytest.mark.parametrize(("bits", "alpha"), [(10, False), (10, True), (12, False), (12, True)])
def test_avif_of_10_and_12_bits(bits: int, alpha: bool, tmp_path: Path) -> None:
    white = (1 << bits) - 1
    pixels = np.random.default_rng(0).integers(0, white + 1, (40, 30, 3 + alpha), np.uint16)
    options = [cv2.IMWRITE_AVIF_DEPTH, bits, *LOSSLESS[".avif"]]
    assert cv2.imwrite(str(tmp_path / "x.avif"), pixels[..., [2, 1, 0, 3] if alpha else [2, 1, 0]], options)
    picture = read_picture(tmp_path / "x.avif")
    assert np.array_equal(picture.pixels, np.rint(pixels[..., :3] / white * 65535).astype(np.uint16))
    assert (picture.alpha is not None) == alpha
    if picture.alpha is not None:
        assert np.array_equal(picture.alpha, np.rint(pixels[..., 3] / white * 65535).astype(np.uint16))


@pytest.mark.parametrize("suffix", [".jp2", pytest.param(".avif", marks=needs_avif)])
def test_8_bits_stay_8(suffix: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    assert cv2.imwrite(str(tmp_path / f"x{suffix}"), pixels[..., ::-1], LOSSLESS[suffix])
    found = read_picture(tmp_path / f"x{suffix}").pixels
    assert found.dtype == np.uint8 and np.array_equal(found, pixels)


def tiff_of_12_bits() -> bytes:
    """Return two grey pixels, 2048 and 4095."""
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8 + 2 + 9 * 12 + 4, 277: 1, 278: 1, 279: 3}
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + fields + bytes(4) + b"\x80\x0f\xff"


def with_bits(path: Path, bits: tuple[int, ...]) -> None:
    """Overwrite what a JPEG 2000 says of the bits of each channel, less 1."""
    content = bytearray(path.read_bytes())
    first = content.index(b"\xff\x4f\xff\x51") + 42
    content[first : first + 3 * len(bits) : 3] = bytes(bits)
    path.write_bytes(content)


def unreadable(kind: str, path: Path) -> None:
    if kind == "12 bits":
        path.write_bytes(tiff_of_12_bits())
    elif kind == "signed":
        tifffile.imwrite(path, LEVELS.astype(np.int8), photometric="minisblack")
    elif kind == "16 bits":
        cards = ["SIMPLE  = T", "BITPIX  = 16", "NAXIS   = 2", "NAXIS1  = 3", "NAXIS2  = 1", "END"]
        header = "".join(card.ljust(80) for card in cards).ljust(2880).encode()
        path.write_bytes(header + LEVELS.astype(">u2").tobytes())
    elif kind == "grey and alpha":
        Image.merge("LA", [Image.fromarray(np.zeros((3, 3), np.uint8))] * 2).save(path, "JPEG2000")
        with_bits(path, (15, 15))
    elif kind == "signed jpeg 2000":
        Image.fromarray(np.zeros((3, 3, 3), np.uint8)).save(path, "JPEG2000")
        with_bits(path, (128 + 15,) * 3)
    elif kind == "mixed":
        Image.fromarray(np.zeros((3, 3, 3), np.uint8)).save(path, "JPEG2000")
        with_bits(path, (7, 7, 11))
    elif kind == "planes":
        grey_alpha = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
        options = {"planarconfig": "separate", "extrasamples": ["unassalpha"], "compression": "zlib"}
        tifffile.imwrite(path, grey_alpha, photometric="minisblack", **options)
    elif kind == "cut planes":
        tifffile.imwrite(path, RGB.repeat(50, 0).transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
        path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("12 bits", "has 12 bits a channel; convert it to 8 or 16 bits"),
        ("signed", "has signed pixels; convert it to unsigned ones of 8 or 16 bits"),
        ("planes", "has grey and alpha in separate planes; convert it to a PNG, or a TIFF without planes"),
        ("16 bits", "is a FITS image of 16 bits; convert it to a PNG or TIFF of 16 bits"),
        ("grey and alpha", "has grey of 16 bits with alpha; convert it to a PNG or TIFF of 16 bits"),
        ("signed jpeg 2000", "has signed pixels; convert it to unsigned ones of 8 or 16 bits"),
        ("mixed", "has 8 and 12 bits a channel; convert it to 8 or 16 bits"),
        ("cut planes", "has its channels in separate planes that tifffile does not decode (failed to read 600 bytes"),
    ],
)
def test_what_no_decoder_keeps_is_refused(kind: str, text: str, tmp_path: Path) -> None:
    unreadable(kind, tmp_path / "x")
    with pytest.raises(DataError) as error:
        read_picture(tmp_path / "x")
    assert str(error.value).startswith(f"'{tmp_path}/x' {text}")


def test_planes_of_a_compression_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("LZW requires the 'imagecodecs' package")

    tifffile.imwrite(tmp_path / "x.tif", RGB.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    monkeypatch.setattr(tifffile, "imread", refuse)
    with pytest.raises(DataError) as error:
        read_picture(tmp_path / "x.tif")
    assert str(error.value) == (
        f"'{tmp_path}/x.tif' has its channels in separate planes that tifffile does not decode (LZW requires the "
        "'imagecodecs' package); convert it to a PNG or TIFF with all channels of a pixel together"
    )


def test_16_bits_a_pixel_are_no_16_bits_a_channel(tmp_path: Path) -> None:
    """Of a BMP with 5, 6 and 5 bits."""
    masks = struct.pack("<3I", 0xF800, 0x07E0, 0x001F)
    header = struct.pack("<IiiHHIIiiII", 40, 1, 1, 1, 16, 3, 4, 0, 0, 0, 0) + masks
    (tmp_path / "x.bmp").write_bytes(b"BM" + struct.pack("<IHHI", 70, 0, 0, 66) + header + b"\x00\xf8\0\0")
    assert read_picture(tmp_path / "x.bmp").pixels.tolist() == [[[255, 0, 0]]]


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (RuntimeError("Failed to decode image\nat 5"), "Failed to decode image"),
        (NotImplementedError("Unknown pixel format"), "Unknown pixel format"),
        (MemoryError(), "MemoryError"),
        (cv2.error("of OpenCV"), "of OpenCV"),
        (IndexError("index out of range"), "index out of range"),
    ],
)
def test_whatever_a_decoder_raises_is_one_sentence(
    raised: Exception, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise raised

    Image.fromarray(LEVELS.astype(np.uint8)).save(tmp_path / "x.png")
    for place, name in ((ImageFile.ImageFile, "load"), (Image, "open")):
        monkeypatch.setattr(place, name, refuse)
        with pytest.raises(DataError) as error:
            read_picture(tmp_path / "x.png")
        assert str(error.value) == f"'{tmp_path}/x.png' cannot be read ({reason}); give a whole image file"
