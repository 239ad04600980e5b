"""An image or a folder of images on the disk: which file goes where, and what became of each."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageFile

from srq_nni.errors import DataError, OptionError, WriteError, did_you_mean, listing
from srq_nni.speedup.upscale.network import SRNetwork
from srq_nni.speedup.upscale.pictures import FORMATS, MAX_PIXELS, check_format, read_picture, write_picture
from srq_nni.speedup.upscale.upscaler import tiling, upscale

REFUSED_NAMES = (errno.ENAMETOOLONG, errno.EISDIR)  # the disk takes other results


@dataclass(frozen=True)
class Job:
    """One image to enlarge: the file it is in and the file it becomes."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Plan:
    """What will be done.

    Attributes:
        jobs: in the order of their names.
        skipped: files that are no images, and images whose result is already there.
    """

    jobs: tuple[Job, ...]
    skipped: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Done:
    """An enlarged image.

    Attributes:
        job: its files.
        input_size, output_size: (height, width).
        seconds: for reading, enlarging and writing.
    """

    job: Job
    input_size: tuple[int, int]
    output_size: tuple[int, int]
    seconds: float


@dataclass
class Outcome:
    """What became of a plan; ``failed`` holds the sentence that says why."""

    done: list[Done] = field(default_factory=list)
    failed: list[tuple[Job, str]] = field(default_factory=list)

    def raise_if_failed(self) -> None:
        """Raise the error of a single image, or one that counts those of a folder.

        Raises:
            DataError: if any image failed.
        """
        total = len(self.done) + len(self.failed)
        if self.failed and total == 1:
            raise DataError(self.failed[0][1])
        if self.failed:
            names = listing(job.source.name for job, _ in self.failed)
            raise DataError(f"{len(self.failed)} of {total} images failed ({names}); the others are written")


def plan(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    suffix: str | None = None,
    skip_existing: bool = False,
) -> Plan:
    """Return which files of ``source`` become which files of ``target``. Nothing is read or written.

    A folder is walked with its subfolders, whose names are kept; hidden files and symbolic links to folders are left
    out. A name keeps its ending where that format can be written, and gets ``.png`` otherwise.

    Args:
        source: image or folder.
        target: image or folder, which need not exist; an image goes into an existing folder by its own name.
        suffix: ending of all results of a folder, such as ``.png``.
        skip_existing: leave out images whose result is already there.

    Raises:
        DataError: if ``source`` is missing or holds no images, or a result would replace an input or another result.
        OptionError: if ``target`` or ``suffix`` does not fit.
    """
    is_folder = os.fspath(target).endswith(os.sep)
    source, target = Path(source), Path(target)
    if suffix is not None:
        suffix = _known_suffix(suffix)
    if source.is_dir():
        jobs, skipped = _folder(source, target, suffix)
    elif source.exists():
        jobs, skipped = [Job(source, _single_target(source, target, suffix, is_folder))], []
    else:
        siblings = os.listdir(source.parent) if source.parent.is_dir() else []
        near = did_you_mean(source.name, siblings)
        raise DataError(f"'{source}' does not exist; give an image or a folder of images{near}")
    _refuse_losses(jobs)
    present = [job for job in jobs if skip_existing and os.path.exists(job.target)]  # Path.exists fails on long names
    return Plan(tuple(job for job in jobs if job not in present), (*skipped, *(job.source for job in present)))


def run(
    network: SRNetwork,
    jobs: Sequence[Job],
    *,
    tile: int | None = None,
    overlap: int | None = None,
    max_pixels: int = MAX_PIXELS,
    on_window: Callable[[int, int], None] | None = None,
    on_image: Callable[[Done | tuple[Job, str]], None] | None = None,
) -> Outcome:
    """Enlarge images one after the other; a broken one does not stop the others.

    Every result appears whole or not at all, also if the program is stopped. In memory are the pixels of one image and
    of its result, and what the engine needs for one window.

    Args:
        network: that runs.
        jobs: of a plan.
        tile, overlap: see ``tiling``.
        max_pixels: larger images are refused before their pixels are read.
        on_window: see ``upscale``.
        on_image: called after each image with ``Done``, or with the job and why it failed.

    Raises:
        OptionError, ExportError: if the tiles are not possible, before the first image, or the network fails.
        WriteError: if the disk refuses a result for more than its name, as it would refuse the next.
    """
    if max_pixels < 1:
        raise OptionError(f"max_pixels: {max_pixels} is not allowed; give a number of pixels from 1")
    tiling(network, tile, overlap)
    outcome = Outcome()
    for job in jobs:
        start = time.perf_counter()
        try:
            check_format(job.target)
            picture = read_picture(job.source, max_pixels=max_pixels)
            check_format(job.target, deep=picture.pixels.itemsize > 1, alpha=picture.alpha is not None)
            result = upscale(network, picture, tile=tile, overlap=overlap, on_window=on_window)
            write_picture(result, job.target)
        except (DataError, WriteError) as error:
            if isinstance(error, WriteError) and error.errno not in REFUSED_NAMES:
                raise
            outcome.failed.append((job, str(error)))
            if on_image is not None:
                on_image((job, str(error)))
            continue
        outcome.done.append(Done(job, picture.size, result.size, time.perf_counter() - start))
        if on_image is not None:
            on_image(outcome.done[-1])
    return outcome


def _folder(source: Path, target: Path, suffix: str | None) -> tuple[list[Job], list[Path]]:
    if target.exists() and not target.is_dir():
        raise OptionError(f"'{target}' is a file and '{source}' a folder; give a folder to write to")
    if not target.exists() and target.suffix.lower() in FORMATS:
        raise OptionError(f"'{target}' names an image and '{source}' is a folder; give a folder to write to")
    if target.resolve() == source.resolve():
        raise OptionError(f"'{target}' is the folder the images come from; give another one")
    files = list(_files(source, target.resolve()))
    endings = _image_endings()
    images = [file for file in files if file.suffix.lower() in endings]
    if not images:
        raise DataError(f"the folder '{source}' holds no images; give a folder with PNG, JPEG, WebP, TIFF or BMP files")
    jobs = [Job(file, _renamed(target / file.relative_to(source), suffix)) for file in images]
    return jobs, [file for file in files if file not in set(images)]


def _image_endings() -> set[str]:
    """Return the endings of what Pillow decodes; it also knows formats that it only writes, recognises or passes on."""
    endings = Image.registered_extensions()  # loads what is in Image.OPEN
    classes = {kind: opener for kind, (opener, _) in Image.OPEN.items() if isinstance(opener, type)}
    stubs = {kind for kind, opener in classes.items() if issubclass(opener, ImageFile.StubImageFile)}
    decoded = Image.OPEN.keys() - stubs - {"MPEG"} | {"MPO"}  # no films; the opener of JPEG opens MPO, too
    return {ending for ending, kind in endings.items() if kind in decoded}


def _files(folder: Path, without: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        shown = [name for name in folders if not name.startswith(".") and (Path(root) / name).resolve() != without]
        folders[:] = sorted(shown)
        yield from (Path(root) / name for name in sorted(names) if not name.startswith("."))


def _single_target(source: Path, target: Path, suffix: str | None, is_folder: bool) -> Path:
    if is_folder or target.is_dir():
        return _renamed(target / source.name, suffix)
    if suffix is not None and target.suffix.lower() != suffix:
        raise OptionError(f"'{target}' does not end with '{suffix}'; give one of the two")
    return target


def _renamed(path: Path, suffix: str | None) -> Path:
    if suffix is None:
        suffix = path.suffix if path.suffix.lower() in FORMATS else ".png"
    return path.with_suffix(suffix)


def _known_suffix(suffix: str) -> str:
    wanted = f".{suffix.lower().lstrip('.')}"
    if wanted not in FORMATS:
        known = [name.lstrip(".") for name in FORMATS]
        raise OptionError(
            f"format: {suffix!r} is not known; give one of {', '.join(known)}{did_you_mean(suffix, known)}"
        )
    return wanted


def _refuse_losses(jobs: Sequence[Job]) -> None:
    """Check that no result replaces an image that is read, by whatever link, or another result."""
    sources = {_identity(job.source): job.source for job in jobs}
    targets: dict[str, Path] = {}
    for job in jobs:
        same = sources.get(_identity(job.target)) if os.path.exists(job.target) else None
        if same is not None:
            raise OptionError(f"'{job.target}' is the image '{same}' itself; give another name or folder to write to")
        place = os.path.realpath(job.target)
        if place in targets:
            raise DataError(
                f"'{targets[place]}' and '{job.source}' would both become '{job.target}'; rename one of them"
            )
        targets[place] = job.source


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what names of one file have in common; None for a broken link."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
