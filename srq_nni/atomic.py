"""Writing a file so that readers see the old one or the whole new one, whatever happens in between."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from srq_nni.errors import WriteError

REMEDIES = {
    errno.ENOSPC: "free space on that disk",
    errno.EDQUOT: "free space in your quota",
    errno.EROFS: "give a folder on a disk that is not read-only",
    errno.EACCES: "give a folder that you may write to",
    errno.EPERM: "give a folder that you may write to",
    errno.ENOENT: "create its folder first",
    errno.ENAMETOOLONG: "give a shorter name",
}
TOLD = 40  # characters of a file's name in that of its unfinished copy; 160 bytes at most, and a name may have 255


def file_to_write(path: str | os.PathLike[str], *sources: str | os.PathLike[str], ending: str = "") -> Path:
    """Return the path of a file that a command may write, before it begins to work.

    Args:
        path: as the user gave it.
        sources: files that are read for it, and must not be lost.
        ending: with which it has to end; files of that kind are told by it.

    Raises:
        WriteError: if it is a folder, its folder does not exist, it is one of ``sources``, or it ends otherwise.
    """
    target = Path(path).expanduser()
    if target.is_dir():
        raise WriteError(
            f"'{target}' is a folder; give the name of a file in it, such as '{target / f'model{ending}'}'"
        )
    if not target.parent.is_dir():
        raise WriteError(f"the folder '{target.parent}' of '{target}' does not exist; create it first")
    if target.exists() and any(_same(target, Path(source).expanduser()) for source in sources):
        raise WriteError(f"'{target}' is the file that is read; give another name to write to")
    if not target.name.lower().endswith(ending):
        raise WriteError(f"'{target}' does not end with {ending}; give a name that does, such as '{target}{ending}'")
    return target


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.samefile(other)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes ``path`` when the block ends well; otherwise ``path`` stays as it was.

    Raises:
        WriteError: if the disk refuses it.
    """
    if not path.name:  # "/", "." and an empty text
        raise write_error(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
    # The name itself may be as long as the disk allows.
    temporary = path.with_name(f".{path.name[:TOLD]}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch.save hides the disk's complaint
        if not isinstance(cause, OSError) or cause.filename not in (None, str(temporary)):
            raise
        raise write_error(path, cause) from None
    finally:
        with suppress(OSError):  # a read-only disk refuses even what is not there
            temporary.unlink(missing_ok=True)


def write_error(path: Path, error: OSError) -> WriteError:
    """Return the sentence that says why ``path`` cannot be written and what to do, with the ``errno`` of ``error``."""
    kept = ", and the old file is unchanged" if os.path.isfile(path) else ""  # Path.is_file raises for a long name
    remedy = REMEDIES.get(error.errno or 0, "give another path")
    refused = WriteError(f"'{path}' cannot be written: {error.strerror or error}{kept}; {remedy}")
    refused.errno = error.errno
    return refused


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed while writing left in ``folder``; none may be writing there now."""
    for file in folder.glob(".*.part"):
        file.unlink(missing_ok=True)
