"""Files appear whole or not at all: on a full disk, a read-only one, and when the block that writes them fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from srq_nni import checkpoint
from srq_nni.atomic import atomic_file, remove_leftovers
from srq_nni.errors import SRQError, WriteError
from tests.disks import disk, fill, read_only

OLD = {"params": {"weight": torch.ones(8)}}
BIG = {"params": {"weight": torch.zeros(1_000_000)}}


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt(), RuntimeError("of torch")])
def test_a_failing_block_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), atomic_file(path) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


def test_the_name_may_be_as_long_as_the_disk_allows(tmp_path: Path) -> None:
    longest, longer = tmp_path / ("x" * 255), tmp_path / ("x" * 256)
    with atomic_file(longest) as file:
        file.write(b"new")
    assert longest.read_bytes() == b"new"
    with pytest.raises(WriteError) as caught, atomic_file(longer):
        pass
    assert str(caught.value) == f"'{longer}' cannot be written: File name too long; give a shorter name"
    assert caught.value.errno == errno.ENAMETOOLONG and names(tmp_path) == [longest.name]


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    """Nor do those of two names in one folder; what they leave when killed is removed."""
    path = tmp_path / "a.bin"
    with atomic_file(path) as one, atomic_file(path) as other:
        one.write(b"one")
        other.write(b"other")
        assert len(names(tmp_path)) == 2
    assert path.read_bytes() == b"one" and names(tmp_path) == ["a.bin"]
    with atomic_file(path):
        (left,) = [name for name in names(tmp_path) if name != "a.bin"]
    (tmp_path / left).touch()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["a.bin"] and left.startswith(".a.bin.") and left.endswith(".part")


def test_other_files_keep_their_own_errors(tmp_path: Path) -> None:
    """What the block reads may be missing; that is no complaint about the file it writes."""
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "a.bin"):
        (tmp_path / "missing").read_bytes()
    assert not names(tmp_path)


def test_a_missing_folder_and_a_folder_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(WriteError) as caught, atomic_file(tmp_path / "no" / "a.bin"):
        pass
    assert str(caught.value) == (
        f"'{tmp_path / 'no' / 'a.bin'}' cannot be written: No such file or directory; create its folder first"
    )
    (tmp_path / "folder").mkdir()
    in_the_way = "folder' cannot be written: Is a directory; give another path"
    with pytest.raises(WriteError, match=in_the_way), atomic_file(tmp_path / "folder") as file:
        file.write(b"x")
    assert names(tmp_path) == ["folder"] and isinstance(caught.value, SRQError | OSError)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        WriteError, match=r"file/a\.pth' cannot be written: (File exists|Not a directory); give another"
    ):
        checkpoint.save(OLD, tmp_path / "file" / "a.pth")


@pytest.mark.parametrize("path", ["/", ".", ""])
def test_a_path_without_a_name(path: str) -> None:
    with pytest.raises(WriteError) as caught, atomic_file(Path(path)):
        pass
    assert str(caught.value) == f"'{Path(path)}' cannot be written: Is a directory; give another path"


@pytest.mark.parametrize("content", [BIG, {"params": {f"{i}": torch.zeros(3000) for i in range(200)}}])
def test_a_disk_that_fills_up_while_a_checkpoint_is_saved(tmp_path: Path, content: dict[str, Any]) -> None:
    with disk(tmp_path / "disk") as folder:
        path = folder / "net_g.pth"
        checkpoint.save(OLD, path)
        before = path.read_bytes()
        with pytest.raises(WriteError) as caught:
            checkpoint.save(content, path)
        assert str(caught.value) == (
            f"'{path}' cannot be written: No space left on device, and the old file is unchanged; "
            "free space on that disk"
        )
        assert path.read_bytes() == before and names(folder) == ["net_g.pth"]
        with pytest.raises(WriteError) as caught:
            checkpoint.save(content, folder / "new.pth")
        assert str(caught.value).endswith(
            "new.pth' cannot be written: No space left on device; free space on that disk"
        )
        assert names(folder) == ["net_g.pth"]


@pytest.mark.parametrize("leave", [0, 4096, 8192])
def test_a_full_disk(tmp_path: Path, leave: int) -> None:
    """Not even the file, or only its first bytes, or all but its last ones find a place."""
    with disk(tmp_path / "disk") as folder:
        (folder / "a.bin").write_bytes(b"old")
        fill(folder, leave)
        kept = "No space left on device, and the old file is unchanged"
        with pytest.raises(WriteError, match=kept), atomic_file(folder / "a.bin") as file:
            file.write(bytes(10_000))
        assert (folder / "a.bin").read_bytes() == b"old" and names(folder) == ["a.bin", "ballast"]


def test_a_read_only_disk(tmp_path: Path) -> None:
    with disk(tmp_path / "disk") as folder:
        path = folder / "net_g.pth"
        checkpoint.save(OLD, path)
        before = path.read_bytes()
        with read_only(folder):
            for target in (path, folder / "below" / "net_g.pth"):
                with pytest.raises(WriteError) as caught:
                    checkpoint.save(BIG, target)
                kept = ", and the old file is unchanged" if target == path else ""
                assert str(caught.value) == (
                    f"'{target}' cannot be written: Read-only file system{kept}; "
                    "give a folder on a disk that is not read-only"
                )
        assert path.read_bytes() == before and names(folder) == ["net_g.pth"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(WriteError, match="Permission denied; give a folder that you may write to"):
        checkpoint.save(OLD, tmp_path / "a.pth")
