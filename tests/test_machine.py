"""examples/machine.py: how much memory a process can still get, and how much it has had."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import machine

MB = 2**20

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs /proc, as Linux has it"
)


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """A kernel that says what the test writes, and sets this process no limit."""
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    unlimited = SimpleNamespace(
        RLIMIT_AS=9,
        RLIMIT_DATA=2,
        RLIM_INFINITY=-1,
        RUSAGE_SELF=0,
        getrlimit=lambda limit: (-1, -1),
        getrusage=lambda who: SimpleNamespace(ru_maxrss=5000),
    )
    monkeypatch.setattr(machine, "resource", unlimited, raising=False)

    def write(files):
        for name, text in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n")

    return write


def in_a_process(body, *arguments):
    """Return the numbers printed by a script that uses the module."""
    begin = (
        f"import os, sys; sys.path.insert(0, os.fsdecode({os.fsencode(machine.__file__)!r}[:-11]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{begin}\nimport machine\n{body}", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(number) for number in done.stdout.split()]


# ----------------------------------------------------------------------------- this machine


@needs_proc
def test_a_process_can_get_what_its_limit_leaves():
    for kind in "RLIMIT_AS", "RLIMIT_DATA":
        before, after = in_a_process(
            "import resource\n"
            f"kind = resource.{kind}\n"
            f"resource.setrlimit(kind, ({1000 * MB}, resource.getrlimit(kind)[1]))\n"
            "before = machine.available()\n"
            f"held = bytearray({200 * MB})\n"
            "print(before, machine.available())"
        )
        assert 700 * MB < before < 1000 * MB
        assert 199 * MB < before - after < 210 * MB


@needs_proc
def test_more_than_what_is_left_cannot_be_had():
    refused, granted = in_a_process(
        "import mmap, resource\n"
        f"untouched = mmap.mmap(-1, {100 * MB})  # counted, although there is no memory behind it\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({500 * MB}, {500 * MB}))\n"
        "left = machine.available()\n"
        "def fits(size):\n"
        "    try: return len(bytearray(size)) == size\n"
        "    except MemoryError: return False\n"
        f"print(int(not fits(left + {MB})), int(fits(left - {8 * MB})))"
    )
    assert refused
    assert granted


@needs_proc
def test_the_peak_rises_with_what_is_held_stays_and_starts_anew():
    first, held, freed, restarted, last = in_a_process(
        "first = machine.peak()\n"
        f"held = bytearray(b'1') * {100 * MB}\n"
        "during = machine.peak()\n"
        "del held\n"
        "freed = machine.peak()\n"
        "print(first, during, freed, int(machine.restart_peak()), machine.peak())"
    )
    assert 99 * MB < held - first < 120 * MB
    assert abs(freed - held) < MB  # each core counts a little of this privately
    if restarted:
        assert abs(last - first) < 20 * MB
    else:
        assert abs(last - held) < MB


def test_what_this_machine_says_is_a_number_or_nothing():
    for found in machine.available(), machine.peak():
        assert found is None or (type(found) is int and found > MB)


# ----------------------------------------------------------------------------- groups


def test_what_the_machine_has_left_is_a_bound(kernel):
    kernel({"proc/meminfo": "MemTotal:  9000 kB\nMemFree:  10 kB\nMemAvailable:   7000 kB"})
    assert machine.available() == 7000 * 1024


VERSIONS = pytest.mark.parametrize(
    ("line", "folder", "limit", "used", "cache"),
    [
        ("0::", "cgroup", "memory.max", "memory.current", "inactive_file"),
        (
            "4:hugetlb,memory:",
            "cgroup/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ],
    ids=["version 2", "version 1"],
)


@VERSIONS
def test_each_group_and_those_above_it_are_a_bound(kernel, line, folder, limit, used, cache):
    kernel(
        {
            "proc/meminfo": "MemAvailable:   70000 kB",
            "proc/self/cgroup": f"9:cpu:/elsewhere\n{line}/a/b:c",
            f"{folder}/a/b:c/{limit}": 5000,
            f"{folder}/a/b:c/{used}": 1000,
        }
    )
    assert machine.available() == 4000
    kernel({f"{folder}/a/{limit}": 8000, f"{folder}/a/{used}": 6500})
    assert machine.available() == 1500
    kernel({f"{folder}/{limit}": 9000, f"{folder}/{used}": 7600})
    assert machine.available() == 1400
    kernel({f"{folder}/{limit}": 6000})  # less than is used, as right after it was lowered
    assert machine.available() == 0


@VERSIONS
def test_files_in_memory_make_room(kernel, line, folder, limit, used, cache):
    kernel(
        {
            "proc/self/cgroup": f"{line}/a",
            f"{folder}/a/{limit}": 5000,
            f"{folder}/a/{used}": 4900,
            f"{folder}/a/memory.stat": f"anon 700\n{cache} 4096\nactive_file 100",
        }
    )
    assert machine.available() == 100 + 4096


@VERSIONS
def test_a_path_that_does_not_exist_inside_a_container_leaves_its_root(
    kernel, line, folder, limit, used, cache
):
    kernel(
        {
            "proc/self/cgroup": f"{line}/docker/0123",
            f"{folder}/{limit}": 5000,
            f"{folder}/{used}": 1000,
        }
    )
    assert machine.available() == 4000


def test_a_group_without_a_limit_is_no_bound(kernel):
    kernel(
        {
            "proc/meminfo": "MemAvailable:   7 kB",
            "proc/self/cgroup": "0::/a",
            "cgroup/a/memory.max": "max",
            "cgroup/a/memory.current": 1000,
        }
    )
    assert machine.available() == 7 * 1024


# ----------------------------------------------------------------------------- where less is known


def test_nothing_is_known_without_the_files_of_linux(kernel, monkeypatch):
    monkeypatch.setattr(machine.resource, "getrlimit", lambda limit: (10**9, 10**9))
    for platform, highest in ("darwin", 5000), ("freebsd14", 5000 * 1024), ("win32", None):
        monkeypatch.setattr(sys, "platform", platform)
        assert machine.available() is None
        assert machine.peak() == highest
        assert not machine.restart_peak()


def test_windows_has_no_module_for_it(monkeypatch, kernel):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delattr(machine, "resource")
    assert machine.available() is None
    assert machine.peak() is None


def test_lines_without_a_number_are_passed_over(kernel):
    kernel({"proc/meminfo": "\nMemAvailable:\nMemAvailable: many kB", "proc/self/cgroup": ""})
    assert machine.available() is None


def test_the_peak_is_read_and_restarted_where_linux_keeps_it(kernel, tmp_path):
    kernel({"proc/self/status": "VmPeak:   99 kB\nVmHWM:\t   17 kB\nVmRSS:  12 kB"})
    assert machine.peak() == 17 * 1024
    assert machine.restart_peak()
    assert (tmp_path / "proc/self/clear_refs").read_text() == "5"
