"""Image files of 8 and 16 bits: grey, RGB, palette, with alpha, upright whatever their EXIF orientation says.

Pillow reads the header first, so that the size of an image is known before memory is taken for its pixels.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import tifffile
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from srq_nni.atomic import atomic_file, write_error
from srq_nni.errors import DataError
from srq_nni.speedup.upscale.decoding import TURNED, decode, read_layout, upright

MAX_PIXELS = 89_478_485  # the limit at which Pillow starts to warn
FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
HOLD_16_BITS = ("PNG", "TIFF")
HOLD_ALPHA = ("PNG", "TIFF", "WEBP")
SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
    "TIFF": {"compression": "tiff_adobe_deflate"},
}


@dataclass(frozen=True)
class Picture:
    """An upright image.

    Attributes:
        pixels: (H, W, C) uint8 or uint16, C is 1 (grey) or 3 (RGB).
        alpha: (H, W) in the same dtype, or None.
        profile: ICC colour profile of the pixels, or None.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    profile: bytes | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.pixels.shape[0], self.pixels.shape[1]


def read_picture(path: Path, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Return the image in ``path``.

    Raises:
        DataError: if the file is no image, is broken, has more than ``max_pixels`` pixels, several frames, or pixels
            other than grey or RGB in 8 or 16 bits.
    """
    with _opened(path, max_pixels) as image:
        layout = read_layout(path, image)
        orientation = _orientation(image)
        if not layout.separate:  # Pillow lacks modes for some of them
            image.load()
        if not layout.deep:
            orientation = _orientation(image)  # Pillow turns TIFF files by itself when it loads them
        profile = image.info.get("icc_profile")
        pixels = upright(decode(path, image, layout), orientation)
    alpha = np.ascontiguousarray(pixels[..., -1]) if pixels.shape[2] in (2, 4) else None
    return Picture(np.ascontiguousarray(pixels[..., : 1 if pixels.shape[2] < 3 else 3]), alpha, profile or None)


def write_picture(picture: Picture, path: Path) -> None:
    """Write ``picture`` in the format that the name of ``path`` ends with, whole or not at all; folders are made.

    Raises:
        DataError: if the format is not known, or cannot hold 16 bits, alpha or the size.
        WriteError: if the disk refuses the file.
    """
    check_format(path, deep=picture.pixels.dtype == np.uint16, alpha=picture.alpha is not None)
    kind = FORMATS[path.suffix.lower()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from None
    try:
        with atomic_file(path) as file:
            _encode(picture, kind, file, path)
    except (ValueError, cv2.error) as error:
        height, width = picture.size
        raise DataError(f"{kind} cannot hold {width} x {height} pixels ({error}); write .png or .tif") from error


def check_format(path: Path, *, deep: bool = False, alpha: bool = False) -> None:
    """Check that the format of ``path`` is known and holds 16 bits (``deep``) and transparency where needed.

    Raises:
        DataError: names what it cannot hold, and formats that can.
    """
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"'{path.name}' has no known ending; give one of {', '.join(FORMATS)}")
    if deep and kind not in HOLD_16_BITS:
        raise DataError(f"'{path.name}': {kind} holds 8 bits and the image has 16; write .png or .tif")
    if alpha and kind not in HOLD_ALPHA:
        raise DataError(f"'{path.name}': {kind} has no transparency and the image has; write .png, .tif or .webp")


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[ImageFile.ImageFile]:
    """Yield the image with nothing but its header read; errors inside the block become ``DataError``."""
    limit = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = None  # our own limit follows at once
        try:
            image = Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
        with image:
            width, height = image.size
            if width * height > max_pixels:
                raise DataError(
                    f"'{path}' has {width} x {height} pixels and the limit is {max_pixels}; raise it with "
                    f"--max-pixels {width * height} if the memory is there"
                )
            if getattr(image, "is_animated", False) and image.format != "MPO":  # phones put a small copy behind a photo
                raise DataError(f"'{path}' has several frames or pages; give single images")
            yield image
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(
            f"'{path}' is no image that Pillow can read; give a PNG, JPEG, WebP, TIFF or BMP file"
        ) from None
    except Exception as error:  # damaged files bring Pillow's decoders to raise anything, MemoryError among it
        reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        raise DataError(f"'{path}' cannot be read ({reason.splitlines()[0]}); give a whole image file") from error


def _orientation(image: Image.Image) -> int:
    """Return EXIF's number from 1 to 8; whatever else cameras write there means nothing."""
    found = image.getexif().get(ExifTags.Base.Orientation, 1)
    return int(found) if found in TURNED else 1


def _encode(picture: Picture, kind: str, file: BinaryIO, path: Path) -> None:
    picture = _with_colours(picture, kind)
    if picture.pixels.dtype == np.uint16:
        file.write(_png_16(picture, path)) if kind == "PNG" else _write_tiff_16(picture, file)
        return
    image = Image.fromarray(_channels(picture.pixels, picture.alpha))
    try:
        image.save(file, kind, icc_profile=picture.profile, **SAVE_OPTIONS.get(kind, {}))
    except OSError as error:
        if error.errno is None:  # the encoder's complaint, not the disk's
            raise ValueError(str(error)) from error
        raise


def _channels(pixels: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """Return (H, W, C) with ``alpha`` as the last channel; one channel alone is (H, W)."""
    if alpha is not None:
        return np.concatenate([pixels, alpha[..., None]], 2)
    return np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _with_colours(picture: Picture, kind: str) -> Picture:
    """Return ``picture`` as RGB if its file has no grey: WebP, or 16 bits with alpha, which few programs read as grey.

    A colour profile of grey is not allowed there and left out.
    """
    deep_alpha = picture.pixels.dtype == np.uint16 and picture.alpha is not None
    if picture.pixels.shape[2] == 3 or not (deep_alpha or kind == "WEBP"):
        return picture
    is_of_grey = picture.profile is not None and picture.profile[16:20] == b"GRAY"  # colour space in its header
    return Picture(picture.pixels.repeat(3, 2), picture.alpha, None if is_of_grey else picture.profile)


def _write_tiff_16(picture: Picture, file: Any) -> None:
    pixels = _channels(picture.pixels, picture.alpha)
    tifffile.imwrite(
        file,
        pixels,
        photometric="minisblack" if pixels.ndim == 2 else "rgb",
        planarconfig=None if pixels.ndim == 2 else "contig",
        extrasamples=None if picture.alpha is None else ["unassalpha"],
        compression="zlib",
        iccprofile=picture.profile,
        metadata=None,
    )


def _png_16(picture: Picture, path: Path) -> bytes:
    pixels = _channels(picture.pixels, picture.alpha)
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
    if picture.profile is None:
        return cv2.imencode(".png", pixels)[1].tobytes()
    content = b""
    if hasattr(cv2, "imencodeWithMetadata"):
        kinds, values = [cv2.IMAGE_METADATA_ICCP], [np.frombuffer(picture.profile, np.uint8)]
        content = cv2.imencodeWithMetadata(".png", pixels, kinds, values)[1].tobytes()
    if not content or Image.open(io.BytesIO(content)).info.get("icc_profile") != picture.profile:
        raise DataError(
            f"'{path.name}': OpenCV {cv2.__version__} cannot keep the colour profile in a PNG of 16 bits; "
            "update opencv-python, or write .tif"
        )
    return content
