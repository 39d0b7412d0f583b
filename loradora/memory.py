"""What a script may ask of the C library's memory.

A training step makes arrays of many megabytes and drops them again.  By default glibc gives such memory
back to the system at once.  In the next step the system has to hand it out again, page by page, each
filled with zeros first.  For a small GPT (810,000 parameters, 32 texts of 64 characters) that are 16,000
pages a step, and a fifth of its time.
"""

from __future__ import annotations

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, and say whether it will.

    Call it once, at the start of a script that trains.  What is freed is then used again instead of
    given back: a LoRA step of the GPT takes 111 ms of processor time instead of 137.  The price is that
    the process holds the most memory that it ever needed, until it ends.  (Arrays of more than 32 MB are
    given back still.)

    It concerns all that the process does, so it is for a script to decide, and nothing here calls it.
    From outside, the environment variables ``MALLOC_MMAP_THRESHOLD_=33554432`` and
    ``MALLOC_TRIM_THRESHOLD_=1000000000`` do the same.

    Returns
    -------
    bool
        False, and nothing has changed, where the C library is not glibc: on macOS, on Windows, and on
        some kinds of Linux.
    """
    try:
        import ctypes  # only now: few need it

        mallopt = ctypes.CDLL(None).mallopt
    except (ImportError, OSError, TypeError, AttributeError):
        return False
    # the first alone would switch off glibc's own way of finding the threshold, and make it worse
    return bool(mallopt(M_MMAP_THRESHOLD, 1 << 25) and mallopt(M_TRIM_THRESHOLD, -1))
