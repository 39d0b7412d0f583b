"""Hands a job to PyTorch: starts processes of ``torch_worker.py``, and reports what they measured."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import loradora as ld
from loradora.nn import same_values

WORKER = Path(__file__).with_name("torch_worker.py")
NEEDED = "torch", "peft", "safetensors"


class Run(NamedTuple):
    """A training to take place there: its name, model and optimizer, and which steps to take."""

    name: str
    model: ld.Module
    optimizer: ld.AdamW
    start: int
    stop: int


def lacking() -> list[str]:
    """Return which of the needed packages are not installed."""
    return [name for name in NEEDED if not find_spec(name)]


def write_job(
    folder: Path, base: ld.MLP, data: Mapping[str, npt.NDArray[Any]], runs: list[Run]
) -> None:
    """Write what the processes need into a folder, as files that PyTorch and PEFT read.

    ``data`` holds ``x``, ``labels`` and ``batches``, whose row k lists the examples of step k.

    Raises
    ------
    ValueError
        For an adapter of a different base, and for an optimizer with several groups.
    OSError
        If the folder already holds a job, or two runs have the same name.
    """
    from safetensors.numpy import save

    if (folder / "job.json").exists():
        raise FileExistsError(0, "the folder already holds a job", str(folder))
    described = [_described(run, base) for run in runs]
    ld.save_model(folder / "base.safetensors", base)
    content = save({name: np.ascontiguousarray(array) for name, array in data.items()})
    (folder / "data.safetensors").write_bytes(content)
    for name, model, optimizer, _, _ in runs:
        (folder / name).mkdir()
        if isinstance(model, ld.PeftModel):
            model.save_pretrained(folder / name)
        else:
            ld.save_model(folder / name / "model.safetensors", model)
        if optimizer.state:
            ld.save_optimizer(folder / name / "optimizer.safetensors", optimizer, model)
    layers = [layer for layer in base.layers if isinstance(layer, ld.Linear)]
    job = {
        "sizes": [layers[0].in_features, *(layer.out_features for layer in layers)],
        "runs": described,
        "digests": {
            name: digest(folder / name) for name in ("base.safetensors", "data.safetensors")
        },
    }
    (folder / "job.json").write_text(json.dumps(job, indent=2) + "\n", encoding="utf-8")


def _described(run: Run, base: ld.MLP) -> dict[str, Any]:
    """Return a run's entry in ``job.json``."""
    adapted = isinstance(run.model, ld.PeftModel)
    if adapted:
        own, given = run.model.get_base_model().state_dict(), base.state_dict()
        if own.keys() != given.keys() or not all(same_values(own[n], given[n]) for n in own):
            raise ValueError(f"{run.name} adapts a different base from the one given")
    if len(run.optimizer.param_groups) > 1:
        raise ValueError(f"the optimizer of {run.name} has several groups, but may have only one")
    (group,) = run.optimizer.param_groups
    return {
        "name": run.name,
        "full": not adapted,
        "optimizer": {name: value for name, value in group.items() if name != "params"},
        "begun": bool(run.optimizer.state),
        "start": run.start,
        "stop": run.stop,
    }


def digest(file: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def train(folder: Path, processes: int = 2, port: int | None = None) -> dict[str, dict[str, float]]:
    """Let several processes do the job in a folder; return what was measured, by the name of the run.

    Gradients travel over the loopback, which no other machine can reach.  But while they train, torchrun
    listens on every address of this machine, at the port where the processes meet.

    Raises
    ------
    RuntimeError
        If it cannot be done, or a process ends early.  The folder is then as it was before.
    """
    results = folder / "there"
    if results.exists():
        raise RuntimeError(f"{results} already exists")
    port = free_port(port)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)),
        *("--master-addr", "127.0.0.1", "--master-port", str(port)),
        *(str(WORKER), str(folder.resolve())),
    ]
    with (
        ending_by_sigterm(),
        subprocess.Popen(
            command,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        try:
            _, printed = process.communicate()
        except BaseException:
            process.terminate()  # torchrun then ends the others
            process.communicate()
            raise
        finally:
            shutil.rmtree(folder / f".there-{port}", ignore_errors=True)
            if process.returncode:
                shutil.rmtree(results, ignore_errors=True)
    if process.returncode:
        raise RuntimeError(cause(printed))
    report: dict[str, dict[str, float]] = json.loads(
        (results / "report.json").read_text(encoding="utf-8")
    )
    return report


def environment() -> dict[str, str]:
    """Return our environment for torchrun, with no defaults for its options, on the loopback."""
    settings = {k: v for k, v in os.environ.items() if not k.startswith("PET_")}
    settings["OMP_NUM_THREADS"] = "1"
    loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    if loopback:
        settings["GLOO_SOCKET_IFNAME"] = loopback[0]
    return settings


@contextlib.contextmanager
def ending_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block with an exception, so that nothing is left running."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set what a signal does
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def free_port(port: int | None = None) -> int:
    """Return a free port of this machine: the given one, or any.

    Raises
    ------
    RuntimeError
        If the given one is taken, or is not a port.
    """
    if port is not None and not 0 < port < 2**16:
        raise RuntimeError(f"a port is a number from 1 to {2**16 - 1}, not {port}")
    try:
        with socket.create_server(("127.0.0.1", port or 0)) as server:
            return int(server.getsockname()[1])
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise RuntimeError(f"the processes cannot meet at port {port}: {reason}") from error


def cause(printed: str) -> str:
    """Return in one line why the processes ended early, from what they printed.

    When one of them ends, the others complain, and torchrun reports last which was the first.
    """
    first = printed.partition("Root Cause")[2]
    killed = re.search(r"Signal \d+ \(\w+\) received by PID \d+", first)
    said = re.search(r"torch_worker\.py: error: (.*)", printed)
    raised = [
        line
        for line in re.findall(r"^(?:\[rank\d+\]: )?(\w[\w.]*Error\b.*)", printed, re.MULTILINE)
        if "ChildFailedError" not in line  # torchrun's own
    ]
    if killed:
        return f"a process was killed: {killed[0]}"
    if said:
        return said[1]
    return raised[-1] if raised else "torchrun failed and gave no reason"
