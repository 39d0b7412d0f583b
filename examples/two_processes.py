"""Hands a job to PyTorch: starts processes of ``torch_worker.py``, and says what became of it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import loradora as ld

WORKER = Path(__file__).with_name("torch_worker.py")
NEEDED = "torch", "peft", "safetensors"


class Run(NamedTuple):
    """A training that goes on there: its name, a model, its optimizer if it has begun, and the steps."""

    name: str
    model: ld.Module
    optimizer: ld.AdamW | None
    start: int
    stop: int


def lacking() -> list[str]:
    """Return which of the packages are not installed."""
    return [name for name in NEEDED if not find_spec(name)]


def write_job(
    folder: Path,
    base: ld.MLP,
    data: Mapping[str, npt.NDArray[Any]],
    options: Mapping[str, Any],
    runs: list[Run],
) -> None:
    """Write what the processes need into a folder: nothing but files that PyTorch and PEFT read.

    ``data`` holds ``x``, ``labels`` and ``batches``, of which row k are the examples of step k.
    """
    from safetensors.numpy import save_file

    ld.save_model(folder / "base.safetensors", base)
    save_file(
        {name: np.ascontiguousarray(array) for name, array in data.items()},
        folder / "data.safetensors",
    )
    for name, model, optimizer, _, _ in runs:
        if isinstance(model, ld.PeftModel):
            model.save_pretrained(folder / name)
        if optimizer is not None:
            ld.save_optimizer(folder / name / "optimizer.safetensors", optimizer, model)
    linear = [layer for layer in base.layers if isinstance(layer, ld.Linear)]
    job = {
        "sizes": [linear[0].in_features, *(layer.out_features for layer in linear)],
        "batch": data["batches"].shape[1],
        "optimizer": dict(options),
        "runs": [
            {
                "name": r.name,
                "full": not isinstance(r.model, ld.PeftModel),
                "start": r.start,
                "stop": r.stop,
            }
            for r in runs
        ],
        "digests": {
            name: digest(folder / name) for name in ("base.safetensors", "data.safetensors")
        },
    }
    (folder / "job.json").write_text(json.dumps(job, indent=2) + "\n", encoding="utf-8")


def digest(file: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def train(folder: Path, processes: int = 2, port: int | None = None) -> dict[str, dict[str, float]]:
    """Let several processes do the job in a folder; return seconds and bytes per step, by run.

    They talk to each other over the loopback, which no other machine can reach.

    Raises
    ------
    RuntimeError
        If it cannot be done, or a process ends early; the folder is then as it was.
    """
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)),
        *("--master-addr", "127.0.0.1", "--master-port", str(free_port(port))),
        *(str(WORKER), str(folder.resolve())),
    ]
    results = folder / "there"
    if results.exists():
        raise RuntimeError(f"{results} is there already")
    settings = {"OMP_NUM_THREADS": "1"}
    loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    if loopback:
        settings["GLOO_SOCKET_IFNAME"] = loopback[0]
    with subprocess.Popen(
        command,
        env={**os.environ, **settings},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    ) as process:
        try:
            _, printed = process.communicate()
        except BaseException:
            process.terminate()  # after Ctrl-C; torchrun then ends the others
            process.communicate()
            raise
        finally:
            shutil.rmtree(folder / ".there", ignore_errors=True)
            if process.returncode:
                shutil.rmtree(results, ignore_errors=True)
    if process.returncode:
        raise RuntimeError(cause(printed))
    report: dict[str, dict[str, float]] = json.loads(
        (results / "report.json").read_text(encoding="utf-8")
    )
    return report


def free_port(port: int | None = None) -> int:
    """Return a port of this machine that is free: this one, or any.

    Raises
    ------
    RuntimeError
        If this one is not.
    """
    try:
        with socket.create_server(("127.0.0.1", port or 0)) as server:
            return int(server.getsockname()[1])
    except OSError as error:
        raise RuntimeError(
            f"the processes cannot meet at port {port}: {os.strerror(error.errno or 0)}"
        ) from error


def cause(printed: str) -> str:
    """Return in a line why the processes have ended early, from what they have printed.

    If one ends, the others complain of it, too, and torchrun ends them by SIGTERM.
    """
    killed = re.search(r"Signal (?!15\b)\d+ \(\w+\) received by PID \d+", printed)
    said = re.search(r"torch_worker\.py: error: (.*)", printed)
    if killed:
        return f"a process was killed: {killed[0]}"
    return said[1] if said else (printed.strip() or "without a word").splitlines()[-1]
