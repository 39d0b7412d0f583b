"""The price of the arithmetic: minigrad and loradora beside PyTorch, PEFT, HIPS autograd and MyGrad.

    python tests/benchmarks/compare.py [--quick] [--out FILE]

Needs the extra ``bench``.  All run in one process and on one thread, in float32, interleaved.  The tables
show medians over the rounds, ± half the distance between the quartiles.  A ratio is the median of the
ratios within a round.  A ratio with a target beside it ends in ✓ or ✗.
"""

from one_thread import settle  # isort: split

import argparse
import importlib.metadata
import itertools
import platform
from collections.abc import Iterator
from pathlib import Path

import decoder
import encoder
import growth
import inference
import main_job
import memory
import ops
import overhead
import steps

VERSIONS = "numpy", "torch", "transformers", "peft", "autograd", "mygrad"


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (cpuinfo.read_text().splitlines() if cpuinfo.exists() else [])
        if line.startswith("model name")
    ]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def header() -> Iterator[str]:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in VERSIONS)
    yield f"Python {platform.python_version()}, {versions}"
    yield f"{platform.system()} {platform.machine()}, {processor()}; one thread; float32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, small cases only")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the printed text here, too")
    options = parser.parse_args()

    settle()
    # decoder and encoder last, because from then on freed memory is kept
    sections = steps, inference, overhead, ops, memory, growth, main_job, decoder, encoder
    lines = []
    for line in itertools.chain(header(), *(part.report(options.quick) for part in sections)):
        print(line, flush=True)
        lines.append(line + "\n")
    if options.out:
        options.out.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
