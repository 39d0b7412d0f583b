"""How files get into their places: all of them or none, even while others write there.

Every file is first written inside a new directory beside its place, and then renamed.  A rename happens
at one moment: others find the old file or the new one, never half a file.  Where several files belong
together, three events can still come between the first rename and the last:

- **A failure, or Ctrl-C.**  Everything renamed so far goes back to what it was before.
- **Another save.**  It could put some of its files over some of ours.  So saves take turns, by a lock on
  the folder.  Where no lock can be had, each save looks at the files when it is done.  If only some of
  them are its own, it starts again.  So the last save to rename a file stops only when all the files
  are its own, and what stays is from one save.
- **A kill.**  Nobody is left to put the old files back, so old and new ones are mixed.  A reader must be
  able to see that they do not belong together.  The new directory stays, too.  The system drops the locks
  of a process that ends, so the next save there can remove it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

#: How the names of temporary directories begin.
PREFIX = ".saving-"

#: What tells a file from every other, even from a later one with the same inode.
Identity: TypeAlias = "tuple[int, int, int]"


@contextlib.contextmanager
def folders(wanted: Iterable[Path]) -> Iterator[None]:
    """Make folders that are not there, and remove them again if what is done inside fails."""
    missing = {p for folder in wanted for p in (folder, *folder.parents) if not p.is_dir()}
    try:
        for folder in sorted(missing):  # a folder comes before those inside it
            folder.mkdir(exist_ok=True)
        yield
    except BaseException:
        for folder in sorted(missing, reverse=True):
            with contextlib.suppress(OSError):  # it was not made yet, or it is in use
                folder.rmdir()
        raise


def write(files: Mapping[Path, bytes]) -> None:
    """Write files into existing folders, in this order; replace those with the same names.

    Raises
    ------
    OSError
        If the disk refuses.  Everything is then as it was before.  If the old files cannot be put back
        either, the message says where they are.
    """
    for path in files:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a directory", str(path))
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "there is no such directory", str(path.parent))
    places = [os.path.join(os.path.realpath(path.parent), path.name) for path in files]
    if len(set(places)) < len(places):
        raise FileExistsError(
            errno.EEXIST, "two of the files have one place", max(places, key=places.count)
        )
    if not any(_put(files) for _ in range(100)):
        raise OSError(errno.EAGAIN, "others keep saving there", str(next(iter(files))))
    for folder in {path.parent for path in files}:
        _sweep(folder, {path.name for path in files})


def _put(files: Mapping[Path, bytes]) -> bool:
    """Write the files and rename them; return whether the result is from one save."""
    homes: dict[Path, _Home] = {}
    ours: dict[Path, Identity | None] = {}
    *earlier, last = files
    try:
        for path, content in files.items():
            if path.parent not in homes:
                homes[path.parent] = _Home(path.parent)
            ours[path] = _written(homes[path.parent].new(path), content)
        for folder in sorted(homes):
            homes[folder].take_turn()
        for path in earlier:
            _keep(path, homes[path.parent].old(path))
        for path in files:
            os.replace(homes[path.parent].new(path), path)
        there = [_identity(path) == mine for path, mine in ours.items()]
    except BaseException:
        if len(ours) == len(files):
            _go_back({path: homes[path.parent].old(path) for path in earlier}, last, ours)
        _remove_all(homes.values())
        raise
    _remove_all(homes.values())
    return all(there) or not any(there)


def _written(path: Path, content: bytes) -> Identity | None:
    """Write a new file through to the disk, and return its identity."""
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return _identity(path)


def _identity(path: Path) -> Identity | None:
    """Return what tells this file from all others, or None if there is no file."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _keep(path: Path, place: Path) -> None:
    """Give a file a second name; copy it where the disk cannot do that."""
    if _identity(path) is not None:
        try:
            os.link(path, place, follow_symlinks=False)
        except (OSError, NotImplementedError):
            shutil.copy2(path, place, follow_symlinks=False)


def _go_back(kept: Mapping[Path, Path], last: Path, ours: Mapping[Path, Identity | None]) -> None:
    """Put the old files back, and remove ours where there were none; do nothing if all are in place.

    Files that another save has put over ours stay.
    """
    try:
        if _identity(last) == ours[last]:
            return
        for path, old in kept.items():
            if _identity(path) == ours[path]:
                if _identity(old) is None:
                    path.unlink()
                else:
                    os.replace(old, path)
    except OSError as error:
        left = ", ".join(str(old) for old in kept.values() if os.path.lexists(old))
        raise OSError(f"{error}; the old files could not be put back: {left}") from error


# ----------------------------------------------------------------------------- temporary directories


#: The suffix of an old file while the new one takes its place.
OLD = ".old"


class _Home:
    """A directory for one save, locked so that others see that its owner is alive."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._locks: list[_Lock] = []
        while True:
            self._path = folder / f"{PREFIX}{secrets.token_hex(8)}"
            try:
                self._path.mkdir(0o700)
                self._locks.append(_Lock(self._path))
                if self._path.is_dir():  # else another save swept it before it was locked
                    os.chmod(self._path, 0o700)  # whatever the umask is
                    break
            except BaseException:
                self.remove()
                raise

    def new(self, path: Path) -> Path:
        """Return where the new file for ``path`` is written."""
        return self._path / path.name

    def old(self, path: Path) -> Path:
        """Return where the old file of ``path`` is kept."""
        return self._path / f"{path.name}{OLD}"

    def take_turn(self) -> None:
        """Wait until no other save renames files in the folder, and lock it until this is removed.

        After 0.2 seconds, go on without the lock.  This thread itself may hold it, when a signal has
        interrupted a save and the handler saves, too.
        """
        for _ in range(100):
            try:
                self._locks.append(_Lock(self._folder, wait=False))
                break
            except BlockingIOError:
                time.sleep(0.002)

    def remove(self) -> None:
        """Remove it and what is inside; unlock it even if that fails, so that it can be swept."""
        with contextlib.ExitStack() as each:
            for lock in self._locks:
                each.callback(lock.close)
            _remove(self._path)


def _remove_all(homes: Iterable[_Home]) -> None:
    """Remove all of them, even if one removal is interrupted."""
    with contextlib.ExitStack() as each:
        for home in homes:
            each.callback(home.remove)


class _Lock:
    """A lock on a directory, which ends when it is closed, or when its process ends.

    Not every disk can lock, and not every system can lock a directory.  ``held`` tells whether it worked.

    Raises
    ------
    BlockingIOError
        Without ``wait``, if it is locked already.
    """

    def __init__(self, directory: Path, wait: bool = True) -> None:
        self.held = False
        self._descriptor = -1
        with contextlib.suppress(FileNotFoundError, PermissionError):
            self._descriptor = os.open(directory, os.O_RDONLY)
            import fcntl  # Windows has none, but it cannot open a directory either

            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                self.held = True
            except BaseException as error:
                self.close()
                if not isinstance(error, OSError) or isinstance(error, BlockingIOError):
                    raise

    def close(self) -> None:
        """Release the lock."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _remove(directory: Path) -> None:
    """Remove a directory of plain files, as far as possible."""
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            os.unlink(directory / name)
        os.rmdir(directory)


def _sweep(folder: Path, names: set[str]) -> None:
    """Remove what killed saves left in a folder, except old files that this save has not replaced."""
    for home in folder.glob(PREFIX + "[0-9a-f]" * 16):
        with contextlib.suppress(OSError):  # its owner is alive, or another save was quicker
            if home.is_dir() and not home.is_symlink():
                with contextlib.closing(_Lock(home, wait=False)) as lock:
                    found = os.listdir(home)
                    kept = {name.removesuffix(OLD) for name in found if name.endswith(OLD)}
                    if lock.held and kept <= names:
                        _remove(home)
