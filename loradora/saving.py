"""How files get into their places: all of them or none, whoever else is writing there.

Every file is first written inside a new directory beside its place, and then renamed.  Others see a
rename at one moment: they find the old file or the new one, and never a half.  Where several files make
up one thing, three events can still come between the first rename and the last:

- **A failure, or Ctrl-C.**  What was renamed so far goes back to what it was before.
- **Another save.**  It may put some of its files over some of ours.  So each save looks at the end: if
  only a part of what is there is its own, it does everything again.  The last one to rename a file
  finds nothing but its own, and so what stays is of one save.
- **A kill.**  Nobody is left to go back, and a part stays old.  Who reads such files must be able to see
  that they do not belong together.  The directory is left, too, until the same files are saved again.  By
  then the system has dropped the lock on it, as it does for every process that ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

#: How the names of temporary directories begin.
PREFIX = ".saving-"

#: What tells a file from every other, also from a later one of the same inode.
Identity: TypeAlias = "tuple[int, int, int]"


@contextlib.contextmanager
def folders(wanted: Iterable[Path]) -> Iterator[None]:
    """Make folders that are not there; if what is done inside fails, they go again."""
    missing = {p for folder in wanted for p in (folder, *folder.parents) if not p.is_dir()}
    try:
        for folder in sorted(missing):  # a folder comes before those inside it
            folder.mkdir(exist_ok=True)
        yield
    except BaseException:
        for folder in sorted(missing, reverse=True):
            with contextlib.suppress(OSError):  # it was not made yet, or somebody is using it
                folder.rmdir()
        raise


def write(files: Mapping[Path, bytes]) -> None:
    """Write files into folders that are there, in this order; replace those of the same names.

    Raises
    ------
    OSError
        If the disk refuses.  Everything is then as it was before.  If even the way back is refused, the
        message says where the old files are.
    """
    for path in files:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a directory", str(path))
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "there is no such directory", str(path.parent))
    while not _put(files):
        pass
    for folder in {path.parent for path in files}:
        _sweep(folder, {path.name for path in files})


def _put(files: Mapping[Path, bytes]) -> bool:
    """Write the files and rename them; return whether what is there then is of one save."""
    with contextlib.ExitStack() as at_the_end:
        homes = {
            folder: at_the_end.enter_context(_directory_in(folder))
            for folder in dict.fromkeys(path.parent for path in files)
        }
        new = {path: homes[path.parent] / path.name for path in files}
        old = {path: homes[path.parent] / f"{path.name}{OLD}" for path in files}
        ours = {path: _written(new[path], content) for path, content in files.items()}
        *earlier, last = files
        for path in earlier:
            _keep(path, old[path])
        try:
            for path in files:
                os.replace(new[path], path)
        except BaseException:
            if _identity(last) != ours[last]:  # else all of them are new
                back = {path: old[path] for path in earlier if _identity(path) == ours[path]}
                _go_back(back, at_the_end)
            raise
        there = [_identity(path) == mine for path, mine in ours.items()]
        return all(there) or not any(there)


def _written(path: Path, content: bytes) -> Identity | None:
    """Write a new file, down to the disk."""
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return _identity(path)


def _identity(path: Path) -> Identity | None:
    """Return what tells this file from all others, None if there is none."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


#: What the name of an old file ends in while the new one takes its place.
OLD = ".old"


def _keep(path: Path, place: Path) -> None:
    """Give a file a second name; copy it where a disk cannot do that."""
    if os.path.lexists(path):
        try:
            os.link(path, place, follow_symlinks=False)
        except (OSError, NotImplementedError):
            shutil.copy2(path, place, follow_symlinks=False)


def _go_back(kept: Mapping[Path, Path], at_the_end: contextlib.ExitStack) -> None:
    """Put old files back into their places; if that fails, leave them where they are kept."""
    try:
        for path, old in kept.items():
            if os.path.lexists(old):
                os.replace(old, path)
            else:
                path.unlink(missing_ok=True)
    except Exception as error:
        at_the_end.pop_all()
        left = [str(old) for old in kept.values() if os.path.lexists(old)]
        raise OSError(f"{error}; the old files could not be put back: {', '.join(left)}") from error


# ----------------------------------------------------------------------------- temporary directories


@contextlib.contextmanager
def _directory_in(folder: Path) -> Iterator[Path]:
    """Make a directory for the time of a save, locked so that others see that its owner is alive."""
    with contextlib.ExitStack() as at_the_end:
        while True:
            home = folder / f"{PREFIX}{secrets.token_hex(8)}"
            at_the_end.callback(shutil.rmtree, home, ignore_errors=True)
            home.mkdir(0o700)
            at_the_end.enter_context(_locked(home, wait=True))
            if home.is_dir():  # else somebody swept it before it was locked
                break
        yield home


@contextlib.contextmanager
def _locked(directory: Path, *, wait: bool) -> Iterator[bool]:
    """Lock a directory; say whether it is locked, which not every disk and system can do."""
    descriptor = None
    try:
        try:
            descriptor = os.open(directory, os.O_RDONLY)
            import fcntl  # which Windows does not have; there a directory cannot be opened

            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            yield False
        else:
            yield True
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _sweep(folder: Path, names: set[str]) -> None:
    """Remove what killed saves of the same files have left in a folder."""
    for home in folder.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # somebody else was quicker, or may and we may not
            if home.is_dir() and not home.is_symlink():
                with _locked(home, wait=False) as dead:
                    if dead and {p.name.removesuffix(OLD) for p in home.iterdir()} <= names:
                        shutil.rmtree(home)
