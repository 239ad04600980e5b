"""From an opened image file to its pixels: what the header says of their layout, and the decoder that keeps all bits.

Pillow decodes 8 bits. OpenCV decodes more, which Pillow would cut to 8 in colour, and tifffile those of a TIFF with
separate planes.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import ExifTags, Image, ImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from srq_nni.errors import DataError

MODES = ("1", "L", "LA", "I;16", "I;16B", "I;16L", "I;16N", "P", "PA", "RGB", "RGBA")
WHITE = 65535
SIGNED = 128  # the flag beside the bits of a channel in JPEG 2000
TURNED = range(2, 9)  # orientations of EXIF but for 1, upright


@dataclass(frozen=True)
class Layout:
    """How a file stores its pixels. Only the header tells: Pillow forgets it when it decodes.

    Attributes:
        deep: whether they have more than 8 bits; the others describe nothing else.
        channels: 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha).
        white: value of the brightest level.
        clear: the level or the colour that is transparent, or None.
        separate: whether each channel lies by itself.
        inverted: whether 0 is white.
        premultiplied: whether the colours are multiplied by alpha.
    """

    deep: bool
    channels: int = 3
    white: int = WHITE
    clear: int | tuple[int, ...] | None = None
    separate: bool = False
    inverted: bool = False
    premultiplied: bool = False


def read_layout(path: Path, image: ImageFile.ImageFile) -> Layout:
    """Return how the pixels of ``image``, of which only the header is read yet, are stored in ``path``.

    Raises:
        DataError: if they are not grey or RGB in bits that a decoder keeps.
    """
    if image.mode not in MODES and not (image.mode == "I" and image.format in ("PNG", "PPM")):
        raise DataError(
            f"'{path}' has pixels of mode {image.mode}; give grey or RGB pixels of 8 or 16 bits, with alpha or without"
        )
    channels = {"RGB": 3, "RGBA": 4}.get(image.mode, 1)
    if image.format == "TIFF":
        return _layout_of_tiff(path, image.tag_v2, image.mode, channels)  # type: ignore[attr-defined]
    if image.format in _BITS_OF:
        return _layout_of_codestream(path, image.format, image.mode, channels)
    arguments = image.tile[0][3] if image.tile else ()  # a plain tuple in Pillow 10
    parts = arguments if isinstance(arguments, tuple) else (arguments,)
    if image.format == "PPM":
        white = parts[1] if len(parts) == 2 and isinstance(parts[1], int) else WHITE if image.mode == "I" else 255
        return Layout(white > 255, channels, white)
    if image.format != "PNG" and image.mode.startswith("I;16"):
        raise DataError(f"'{path}' is a {image.format} image of 16 bits; convert it to a PNG or TIFF of 16 bits")
    raw = str(parts[0]) if image.format == "PNG" and parts else ""
    return Layout(raw.endswith(";16B"), 2 if raw == "LA;16B" else channels, clear=image.info.get("transparency"))


def decode(path: Path, image: ImageFile.ImageFile, layout: Layout) -> np.ndarray:
    """Return (H, W, C) uint8 or uint16 in the order grey, alpha or red, green, blue, alpha.

    Raises:
        DataError: if the decoder of separate planes lacks their compression.
    """
    if not layout.deep:
        return _decode_8_bits(image)
    pixels = _separate_planes(path) if layout.separate else _decode_16_bits(path, image.format)
    pixels = pixels[..., [0, 3]] if layout.channels == 2 else pixels[..., : layout.channels]
    if layout.white != WHITE:
        scaled = np.minimum(pixels, layout.white).astype(np.uint32) * WHITE
        pixels = ((scaled + layout.white // 2) // layout.white).astype(np.uint16)
    if layout.inverted:
        pixels = WHITE - pixels
    if layout.premultiplied:
        pixels = _divided_by_alpha(pixels)
    if layout.clear is not None:
        visible = (pixels != np.asarray(layout.clear)).any(2, keepdims=True)
        pixels = np.concatenate([pixels, visible * np.uint16(WHITE)], 2)
    return pixels


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return ``pixels`` (H, W, C) as a viewer shows them; ``orientation`` is EXIF's, from 1 to 8."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _layout_of_tiff(path: Path, tags: ImageFileDirectory_v2, mode: str, channels: int) -> Layout:
    bits = set(tags.get(ExifTags.Base.BitsPerSample, (1,)))
    if len(bits) > 1 or not bits <= {1, 2, 4, 8, 16}:
        named = " and ".join(str(count) for count in sorted(bits))
        raise DataError(f"'{path}' has {named} bits a channel; convert it to 8 or 16 bits")
    if set(tags.get(ExifTags.Base.SampleFormat, (1,))) != {1}:
        raise DataError(f"'{path}' has signed pixels; convert it to unsigned ones of 8 or 16 bits")
    separate = tags.get(ExifTags.Base.PlanarConfiguration) == 2
    if separate and mode == "LA":  # Pillow takes the alpha from the wrong plane
        raise DataError(
            f"'{path}' has grey and alpha in separate planes; convert it to a PNG, or a TIFF without planes"
        )
    return Layout(
        bits == {16},
        channels,
        separate=separate and channels > 1 and bits == {16},
        inverted=tags.get(ExifTags.Base.PhotometricInterpretation) == 0,
        premultiplied=channels == 4 and tags.get(ExifTags.Base.ExtraSamples, ())[:1] == (1,),
    )


def _layout_of_codestream(path: Path, kind: str, mode: str, channels: int) -> Layout:
    """Return the layout of an AVIF or JPEG 2000 file, whose bits a channel Pillow does not tell."""
    bits = set(_BITS_OF[kind](path.read_bytes()))
    if max(bits, default=8) <= 8:
        return Layout(False, channels)
    if max(bits) > SIGNED:
        raise DataError(f"'{path}' has signed pixels; convert it to unsigned ones of 8 or 16 bits")
    if len(bits) > 1 or max(bits) > 16:
        named = " and ".join(str(count) for count in sorted(bits))
        raise DataError(f"'{path}' has {named} bits a channel; convert it to 8 or 16 bits")
    if mode == "LA":
        raise DataError(f"'{path}' has grey of {max(bits)} bits with alpha; convert it to a PNG or TIFF of 16 bits")
    return Layout(True, channels, (1 << max(bits)) - 1)


def _bits_of_avif(content: bytes) -> list[int]:
    """Return the bits of an AV1 image: two flags of its configuration (AV1-ISOBMFF, 2.3.3)."""
    flags = content[content.index(b"av1C") + 6]
    return [(12 if flags & 0x20 else 10) if flags & 0x40 else 8]


def _bits_of_jpeg_2000(content: bytes) -> list[int]:
    """Return the bits of each component, and ``SIGNED`` more where it is signed (ISO 15444-1, A.5.1)."""
    start = content.index(b"\xff\x4f\xff\x51")
    count = int.from_bytes(content[start + 40 : start + 42], "big")
    return [bits + 1 for bits in content[start + 42 : start + 42 + 3 * count : 3]]


_BITS_OF = {"AVIF": _bits_of_avif, "JPEG2000": _bits_of_jpeg_2000}


def _decode_8_bits(image: Image.Image) -> np.ndarray:
    clear = "transparency" in image.info or image.mode in ("LA", "PA", "RGBA")
    base = "L" if image.mode in ("1", "L", "LA") else "RGB"
    target = base + "A" if clear else base
    pixels = np.asarray(image if image.mode == target else image.convert(target))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _decode_16_bits(path: Path, kind: str | None) -> np.ndarray:
    """Return the stored uint16 values (H, W, C) in the order red, green, blue, alpha; grey may have 1 or 4 channels."""
    content = io.BytesIO(path.read_bytes())
    if kind == "TIFF":
        with tifffile.TiffFile(content, mode="r+") as file:  # OpenCV would turn it, and not all the way
            orientation = file.pages.first.tags.get(ExifTags.Base.Orientation)
            if orientation is not None and orientation.value in TURNED:
                orientation.overwrite(1)
    pixels = cv2.imdecode(np.frombuffer(content.getbuffer(), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise ValueError("OpenCV does not decode its 16 bits")
    if pixels.ndim == 2:
        return pixels[..., None]
    return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def _separate_planes(path: Path) -> np.ndarray:
    try:
        return np.moveaxis(tifffile.imread(path, key=0), 0, -1)
    except ValueError as error:
        raise DataError(
            f"'{path}' has its channels in separate planes that tifffile does not decode ({error}); convert it to a "
            "PNG or TIFF with all channels of a pixel together"
        ) from error


def _divided_by_alpha(pixels: np.ndarray) -> np.ndarray:
    alpha = pixels[..., 3:].astype(np.uint32)
    colours = (pixels[..., :3] * np.uint32(WHITE) + alpha // 2) // np.maximum(alpha, 1)
    return np.concatenate([np.minimum(colours, WHITE).astype(np.uint16), pixels[..., 3:]], 2)
