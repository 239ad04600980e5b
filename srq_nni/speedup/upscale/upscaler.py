"""One picture through one network: channels, value range, alpha and tiles."""

from __future__ import annotations

import logging
from collections.abc import Callable

import cv2
import numpy as np
from scipy import ndimage

from srq_nni.errors import ExportError, OptionError
from srq_nni.speedup.upscale.network import SRNetwork
from srq_nni.speedup.upscale.pictures import Picture
from srq_nni.speedup.upscale.tiles import Window, count_windows, windows

logger = logging.getLogger(__name__)
TILE = 256  # pixels kept of a window where nothing else is asked for
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def tiling(network: SRNetwork, tile: int | None = None, overlap: int | None = None) -> tuple[int | None, int]:
    """Return rows and columns that are kept of each window (None: the image is not cut) and those around them.

    With an overlap of at least ``network.radius``, the default, no kept pixel sees a cut.

    Args:
        network: that runs.
        tile: to keep; 0 cuts nothing, None takes 256, or twice the overlap if that is more.
        overlap: None takes ``network.radius``; less is faster and may leave seams.

    Raises:
        OptionError: for a negative number.
        ExportError: if the network looks at the whole image and a tile is asked for.
    """
    for name, value in (("tile", tile), ("overlap", overlap)):
        if value is not None and value < 0:
            raise OptionError(f"{name}: {value} is not allowed; give a number of pixels from 0")
    if tile == 0:
        return None, 0
    if network.radius is None:
        if tile is None:
            return None, 0
        raise ExportError(
            f"'{network.path}' cannot be tiled: {network.untileable}, so parts of an image would not fit together; "
            "leave --tile out (memory then grows with the image)"
        )
    overlap = network.radius if overlap is None else overlap
    if overlap < network.radius and overlap not in network.warned:
        network.warned.add(overlap)
        logger.warning("overlap %d is below %d, what a pixel sees: seams are possible", overlap, network.radius)
    return (max(TILE, 2 * overlap) if tile is None else tile), overlap


def upscale(
    network: SRNetwork,
    picture: Picture,
    *,
    tile: int | None = None,
    overlap: int | None = None,
    on_window: Callable[[int, int], None] | None = None,
) -> Picture:
    """Return the enlarged ``picture`` in the same dtype and with the same profile.

    A network of three channels gets grey pixels three times and its result is made grey again; one of one channel gets
    each colour by itself. Alpha is enlarged by bicubic interpolation; colours that it hides are replaced by the nearest
    visible ones first, so that they do not show at edges.

    Args:
        network: that runs.
        picture: of any size.
        tile, overlap: see ``tiling``.
        on_window: called before the first window and after each with (windows done, windows in all).
    """
    height, width = picture.size
    kept, around = tiling(network, tile, overlap)
    pixels = picture.pixels if picture.alpha is None else _without_hidden_colours(picture.pixels, picture.alpha)
    result = np.empty((height * network.scale, width * network.scale, pixels.shape[2]), pixels.dtype)
    total = count_windows(height, width, kept, around)
    report = on_window or (lambda done, total: None)
    report(0, total)
    for done, window in enumerate(windows(height, width, kept, around), 1):
        _fill(result, network, pixels, window)
        report(done, total)
    return Picture(result, _enlarged_alpha(picture.alpha, network.scale), picture.profile)


def _fill(result: np.ndarray, network: SRNetwork, pixels: np.ndarray, window: Window) -> None:
    """Run one window of ``pixels`` (H, W, C) and put what is kept of it into ``result``."""
    white = np.float32(np.iinfo(pixels.dtype).max / network.value_range)
    image = pixels[window.rows, window.columns].transpose(2, 0, 1).astype(np.float32) / white
    if network.channels == 1:
        output = np.concatenate([network.run(channel[None]) for channel in image])
    else:
        output = network.run(image.repeat(3, 0) if len(image) == 1 else image)
    inner = _shifted(window.kept_rows, window.rows.start), _shifted(window.kept_columns, window.columns.start)
    kept = output[:, *(_scaled(span, network.scale) for span in inner)].transpose(1, 2, 0)
    if pixels.shape[2] == 1 and network.channels == 3:
        kept = (kept @ LUMA)[..., None]
    place = _scaled(window.kept_rows, network.scale), _scaled(window.kept_columns, network.scale)
    result[place] = (kept * white).clip(0, np.iinfo(pixels.dtype).max).round()


def _shifted(span: slice, by: int) -> slice:
    return slice(span.start - by, span.stop - by)


def _scaled(span: slice, scale: int) -> slice:
    return slice(span.start * scale, span.stop * scale)


def _without_hidden_colours(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return pixels
    rows, columns = ndimage.distance_transform_edt(hidden, return_distances=False, return_indices=True)
    return pixels[rows, columns]


def _enlarged_alpha(alpha: np.ndarray | None, scale: int) -> np.ndarray | None:
    if alpha is None:
        return None
    return cv2.resize(alpha, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
