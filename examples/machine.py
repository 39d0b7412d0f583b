"""How much memory this process can still get, and how much it has had.

Linux tells both in files, which are read here with nothing but the standard library.  Other systems tell
less.  What the system does not tell is None.

Sources: proc(5) for the files under ``/proc``, getrlimit(2) for the limits of a process.  For those of a
group of processes, such as a container, cgroups(7) and the kernel's
``Documentation/admin-guide/cgroup-v2.rst`` and ``cgroup-v1/memory.rst``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

if sys.platform != "win32":
    import resource

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def available() -> int | None:
    """Return how many bytes this process can still get, or None where that is unknown.

    There are three bounds, and the smallest one counts: what the machine has left (``MemAvailable``:
    free, or freed at once when needed), the limits of the groups that the process is in, and the limits
    of the process itself.
    """
    machine = _field(PROC / "meminfo", "MemAvailable")
    bounds = [machine, *_left_by_groups(), *_left_by_limits()]
    return min((max(bound, 0) for bound in bounds if bound is not None), default=None)


def peak() -> int | None:
    """Return the most bytes of memory that this process has held at once, or None where that is unknown.

    That is its highest resident size: VmHWM, the "high water mark".  Without ``/proc`` it is
    ``ru_maxrss`` of getrusage(2), which is in bytes on macOS and in kB elsewhere.
    """
    highest = _field(PROC / "self" / "status", "VmHWM")
    if highest is None and sys.platform != "win32":
        unit = 1 if sys.platform == "darwin" else 1024
        highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return highest


def restart_peak() -> bool:
    """Restart ``peak`` from what is held now; return whether that worked.

    Linux does it when a 5 is written to ``clear_refs``.
    """
    try:
        (PROC / "self" / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


# ---------------------------------------------------------------------------- groups of processes


class _Files(NamedTuple):
    """Where a version of cgroups keeps its numbers, below ``CGROUPS``."""

    folder: str
    limit: str
    used: str
    cache: str


#: By the name between the colons in ``/proc/self/cgroup``.  Version 2 has no name there.
_VERSIONS = {
    "": _Files("", "memory.max", "memory.current", "inactive_file"),
    "memory": _Files(
        "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    ),
}


def _left_by_groups() -> Iterator[int]:
    """Yield what is left in each group of this process, and in the groups above, whose limits it shares.

    A group also counts files that were read.  Files not used lately (``inactive_file``) make room as soon
    as it is needed, so they do not count here.  In a container the path may be the one outside, which
    does not exist inside.  Then the files of the root are the container's.
    """
    for line in _text(PROC / "self" / "cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        for controller in _VERSIONS.keys() & controllers.split(","):
            files = _VERSIONS[controller]
            group = PurePosixPath(path.lstrip("/"))
            for place in (CGROUPS / files.folder / g for g in (group, *group.parents)):
                limit, used = _number(place / files.limit), _number(place / files.used)
                if limit is not None and used is not None:
                    yield limit - used + (_field(place / "memory.stat", files.cache) or 0)


# ---------------------------------------------------------------------------- limits of the process


def _left_by_limits() -> list[int]:
    """Return what the limits of this process leave: one for all its addresses, one for its data."""
    left: list[int] = []
    if sys.platform != "win32":
        for limit, used in (resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData"):
            most, size = resource.getrlimit(limit)[0], _field(PROC / "self" / "status", used)
            if most != resource.RLIM_INFINITY and size is not None:
                left.append(most - size)
    return left


# ---------------------------------------------------------------------------- files of the kernel


def _text(file: Path) -> str:
    """Return the text of a file, or an empty one if there is no such file."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    """Return the number that a file consists of; None for "max"."""
    text = _text(file).strip()
    return int(text) if text.isdecimal() else None


def _field(file: Path, name: str) -> int | None:
    """Return the number behind a name, in bytes, from lines such as ``VmHWM:  1700 kB``."""
    for line in _text(file).splitlines():
        key, *value = line.replace(":", " ").split() or [""]
        if key == name and value and value[0].isdecimal():
            return int(value[0]) * (1024 if value[1:] == ["kB"] else 1)
    return None
