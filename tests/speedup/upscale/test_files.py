"""Folders, names, files that are not touched, and what happens when one image is broken or the program is stopped."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from srq_nni.errors import DataError, OptionError, WriteError
from srq_nni.speedup.upscale import Done, Job, SRNetwork, files, plan, read_picture, run
from tests.speedup.upscale.networks import nearest, repeated

pytest.importorskip("openvino")
PHOTO = np.ascontiguousarray(data.astronaut()[100:117, 150:173])


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> SRNetwork:
    path = nearest(tmp_path_factory.mktemp("network") / "nearest.onnx")
    return SRNetwork(path, engine="openvino", threads=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as people have them."""
    source = tmp_path / "in"
    (source / "sub").mkdir(parents=True)
    for name in ("b.png", "a.bmp", "sub/c.tif", "sub/d.gif", ".hidden.png"):
        Image.fromarray(PHOTO).save(source / name)
    (source / "notes.txt").write_text("no image")
    return source


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_a_folder_is_mirrored(network: SRNetwork, folder: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    todo = plan(folder, tmp_path / "out")
    assert [str(job.source.relative_to(folder)) for job in todo.jobs] == ["a.bmp", "b.png", "sub/c.tif", "sub/d.gif"]
    assert [path.name for path in todo.skipped] == ["notes.txt"]
    calls: list[tuple[int, int]] = []
    outcome = run(network, todo.jobs, on_window=lambda done, total: calls.append((done, total)), on_image=print)
    assert names(tmp_path / "out") == ["a.bmp", "b.png", "sub/c.tif", "sub/d.png"]
    for name in ("a.bmp", "b.png", "sub/c.tif"):
        assert np.array_equal(read_picture(tmp_path / "out" / name).pixels, repeated(PHOTO))
    assert [(done.input_size, done.output_size) for done in outcome.done] == [((17, 23), (34, 46))] * 4
    assert calls == [(0, 1), (1, 1)] * 4 and not outcome.failed
    outcome.raise_if_failed()
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_results_inside_the_folder_are_not_taken_for_images(network: SRNetwork, folder: Path) -> None:
    for _ in range(2):
        todo = plan(folder, folder / "large", suffix="png")
        assert len(todo.jobs) == 4
        run(network, todo.jobs)
    assert names(folder / "large") == ["a.png", "b.png", "sub/c.png", "sub/d.png"]


def test_skip_existing(network: SRNetwork, folder: Path, tmp_path: Path) -> None:
    run(network, plan(folder, tmp_path / "out").jobs[:3])
    todo = plan(folder, tmp_path / "out", skip_existing=True)
    assert [job.source.name for job in todo.jobs] == ["d.gif"]
    assert [path.name for path in todo.skipped] == ["notes.txt", "a.bmp", "b.png", "c.tif"]


def test_what_pillow_knows_and_does_not_decode_is_no_image(folder: Path, tmp_path: Path) -> None:
    for name in ("manual.pdf", "data.h5", "data.hdf", "data.grib", "data.bufr", "film.mpg", "film.mpeg", "x.palm"):
        (folder / name).touch()
    for name in ("e.jpg", "f.jpeg", "g.webp", "h.tiff", "i.ppm", "j.mpo", "k.JP2", "l.tga", "m.ico"):
        (folder / name).touch()
    todo = plan(folder, tmp_path / "out")
    assert "".join(job.source.stem for job in todo.jobs) == "abefghijklmcd"
    assert {path.suffix for path in todo.skipped} == {
        ".pdf",
        ".h5",
        ".hdf",
        ".grib",
        ".bufr",
        ".mpg",
        ".mpeg",
        ".palm",
        ".txt",
    }


def test_one_image(network: SRNetwork, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for target, expected in ((tmp_path / "new/x.tif", "new/x.tif"), (tmp_path / "there", "there/b.png")):
        run(network, plan(folder / "b.png", target).jobs)
        assert np.array_equal(read_picture(tmp_path / expected).pixels, repeated(PHOTO))
    assert plan(folder / "b.png", f"{tmp_path}/later/").jobs[0].target == tmp_path / "later/b.png"


def test_a_broken_image_does_not_stop_the_others(network: SRNetwork, folder: Path, tmp_path: Path) -> None:
    (folder / "a.bmp").write_bytes((folder / "a.bmp").read_bytes()[:500])
    (folder / "a.png").write_text("no image at all")
    Image.fromarray(PHOTO).save(folder / "e.dds")
    content = bytearray((folder / "e.dds").read_bytes())
    content[80] = 0  # flags of the pixels: Pillow raises NotImplementedError
    (folder / "e.dds").write_bytes(content)
    seen: list[Done | tuple[Job, str]] = []
    outcome = run(network, plan(folder, tmp_path / "out").jobs, on_image=seen.append)
    assert [isinstance(result, Done) for result in seen] == [False, False, True, False, True, True]
    assert names(tmp_path / "out") == ["b.png", "sub/c.tif", "sub/d.png"]
    assert [job.source.name for job, _ in outcome.failed] == ["a.bmp", "a.png", "e.dds"]
    with pytest.raises(DataError) as error:
        outcome.raise_if_failed()
    assert str(error.value) == "3 of 6 images failed (a.bmp, a.png, e.dds); the others are written"
    single = run(network, plan(folder / "a.png", tmp_path / "x.png").jobs)
    with pytest.raises(DataError, match=r"a.png' is no image that Pillow can read; give a PNG, JPEG"):
        single.raise_if_failed()


def test_a_name_as_long_as_allowed_is_written(network: SRNetwork, folder: Path, tmp_path: Path) -> None:
    longest = f"{'长' * 83}ab.png"  # 255 bytes
    os.rename(folder / "b.png", folder / longest)
    outcome = run(network, plan(folder, tmp_path / "out").jobs)
    assert not outcome.failed and longest in names(tmp_path / "out")


def test_a_name_that_cannot_be_written_does_not_stop_the_others(
    network: SRNetwork, folder: Path, tmp_path: Path
) -> None:
    """One gets too long by its ending, one is a folder."""
    os.rename(folder / "b.png", folder / f"{'b' * 252}.im")
    (tmp_path / "out/a.bmp").mkdir(parents=True)
    outcome = run(network, plan(folder, tmp_path / "out").jobs)
    assert [reason for _, reason in outcome.failed] == [
        f"'{tmp_path}/out/a.bmp' cannot be written: Is a directory; give another path",
        f"'{tmp_path}/out/{'b' * 252}.png' cannot be written: File name too long; give a shorter name",
    ]
    assert names(tmp_path / "out") == ["sub/c.tif", "sub/d.png"]
    (left,) = plan(folder, tmp_path / "out", skip_existing=True).jobs
    assert left.source.suffix == ".im"


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), RuntimeError("engine")])
def test_nothing_half_written_stays(
    stop: BaseException, network: SRNetwork, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped_while_saving(self: Image.Image, file: object, *_: object, **__: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise stop

    (tmp_path / "old.png").write_bytes(b"old")
    monkeypatch.setattr(Image.Image, "save", stopped_while_saving)
    with pytest.raises(type(stop)):
        run(network, plan(folder / "b.png", tmp_path / "old.png").jobs)
    assert (tmp_path / "old.png").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["old.png"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_disk_ends_the_run(
    number: int, network: SRNetwork, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(WriteError, match=rf"a\.bmp' cannot be written: {os.strerror(number)}; "):
        run(network, plan(folder, tmp_path / "out").jobs)
    assert names(tmp_path / "out") == []


def link(source: Path, target: Path) -> Path:
    os.link(source, target)
    return target


@pytest.mark.parametrize(
    ("source", "target", "text"),
    [
        ("nothing.png", "out", "'{}/nothing.png' does not exist; give an image or a folder of images"),
        (
            "in/bb.png",
            "out",
            "'{}/in/bb.png' does not exist; give an image or a folder of images; did you mean 'b.png'?",
        ),
        (
            "empty",
            "out",
            "the folder '{}/empty' holds no images; give a folder with PNG, JPEG, WebP, TIFF or BMP files",
        ),
        ("in", "in", "'{}/in' is the folder the images come from; give another one"),
        ("in", "in/../in", "'{}/in/../in' is the folder the images come from; give another one"),
        ("in", "in/b.png", "'{}/in/b.png' is a file and '{}/in' a folder; give a folder to write to"),
        ("in", "new.png", "'{}/new.png' names an image and '{}/in' is a folder; give a folder to write to"),
        (
            "in/b.png",
            "in/b.png",
            "'{}/in/b.png' is the image '{}/in/b.png' itself; give another name or folder to write",
        ),
        ("in/b.png", "in", "'{}/in/b.png' is the image '{}/in/b.png' itself; give another name or folder to write to"),
        ("in/b.png", "hard.png", "'{}/hard.png' is the image '{}/in/b.png' itself; give another name or folder to"),
        ("in/b.png", "soft.png", "'{}/soft.png' is the image '{}/in/b.png' itself; give another name or folder to"),
        ("twice", "out", "'{}/twice/x.gif' and '{}/twice/x.png' would both become '{}/out/x.png'; rename one of them"),
    ],
)
def test_wrong_files(source: str, target: str, text: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "twice").mkdir()
    for name in ("x.gif", "x.png"):
        Image.fromarray(PHOTO).save(tmp_path / "twice" / name)
    link(folder / "b.png", tmp_path / "hard.png")
    (tmp_path / "soft.png").symlink_to(folder / "b.png")
    before = names(tmp_path)
    with pytest.raises((DataError, OptionError)) as error:
        plan(tmp_path / source, tmp_path / target if ".." not in target else f"{tmp_path}/{target}")
    assert str(error.value).startswith(text.replace("{}", str(tmp_path)))
    assert names(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda f: plan(f, f / "out", suffix="jpgg"),
            "format: 'jpgg' is not known; give one of png, jpg, jpeg, webp, tif",
        ),
        (
            lambda f: plan(f / "b.png", f / "x.png", suffix="jpg"),
            "x.png' does not end with '.jpg'; give one of the two",
        ),
    ],
)
def test_wrong_formats(change: Callable[[Path], object], text: str, folder: Path) -> None:
    with pytest.raises(OptionError) as error:
        change(folder)
    assert text in str(error.value)


def test_limits(network: SRNetwork, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"^max_pixels: 0 is not allowed; give a number of pixels from 1$"):
        run(network, [], max_pixels=0)
    outcome = run(network, plan(folder / "b.png", tmp_path / "x.png").jobs, max_pixels=100)
    assert "has 23 x 17 pixels and the limit is 100; raise it with --max-pixels 391" in outcome.failed[0][1]
