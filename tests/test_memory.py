"""Memory that was freed is kept for the next step, if a script asks for it."""

import ctypes
import os
import subprocess
import sys

import pytest

import loradora as ld

#: Prints how many pages the system hands out while arrays are made that were made before.
AGAIN = """
import resource, sys
import numpy as np
import loradora as ld
if sys.argv[1] == "keep":
    assert ld.keep_freed_memory()
pages = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    before = pages()
    arrays = [np.ones(2_000_000, np.float32) for _ in range(10)]
    del arrays
    again = pages() - before
print(again)
"""


def is_glibc():
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (AttributeError, ValueError, OSError):
        return False


@pytest.mark.skipif(not is_glibc(), reason="it is about glibc's malloc")
def test_what_is_freed_is_used_again():
    """80 MB are 20,000 pages of 4 kB (or fewer larger ones)."""
    plain, kept = (
        int(subprocess.check_output([sys.executable, "-c", AGAIN, how]))
        for how in ("plain", "keep")
    )
    assert plain > 2 * kept


@pytest.mark.parametrize("error", [OSError, TypeError, AttributeError])
def test_nothing_happens_where_there_is_no_such_thing(monkeypatch, error):
    def CDLL(name):
        raise error("no C library of this kind")

    monkeypatch.setattr(ctypes, "CDLL", CDLL)
    assert ld.keep_freed_memory() is False
