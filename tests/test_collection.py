"""Every process that collects the tests finds the same ones in the same order.

Whoever runs a failed test again by its name relies on it, and so do tools that share the tests out among
processes.
"""

import os
import subprocess
import sys


def test_another_process_finds_the_same_tests(request):
    here = [item.nodeid for item in request.session.items]
    files = dict.fromkeys(str(item.path) for item in request.session.items)
    another = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", *files],
        cwd=request.config.rootpath,
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    chosen = set(here)  # of these files, perhaps a few by name
    assert [line for line in another.stdout.splitlines() if line in chosen] == here
