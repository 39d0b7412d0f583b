"""Hands a job to PyTorch: starts processes of ``torch_worker.py``, and says what became of it."""

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
    """A training that goes on there: its name, a model, its optimizer, and which steps are taken."""

    name: str
    model: ld.Module
    optimizer: ld.AdamW
    start: int
    stop: int


def lacking() -> list[str]:
    """Return which of the packages are not installed."""
    return [name for name in NEEDED if not find_spec(name)]


def write_job(
    folder: Path, base: ld.MLP, data: Mapping[str, npt.NDArray[Any]], runs: list[Run]
) -> None:
    """Write what the processes need into a folder: nothing but files that PyTorch and PEFT read.

    ``data`` holds ``x``, ``labels`` and ``batches``, of which row k are the examples of step k.

    Raises
    ------
    ValueError
        For an adapter of another base, and an optimizer with several groups.
    OSError
        If there is a job in this folder already, or two runs have one name.
    """
    from safetensors.numpy import save

    if (folder / "job.json").exists():
        raise FileExistsError(0, "there is a job already", str(folder))
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
    """Return what is in ``job.json`` of a run."""
    adapted = isinstance(run.model, ld.PeftModel)
    if adapted:
        own, given = run.model.get_base_model().state_dict(), base.state_dict()
        if own.keys() != given.keys() or not all(same_values(own[n], given[n]) for n in own):
            raise ValueError(f"{run.name} adapts another base than the one that is given")
    if len(run.optimizer.param_groups) > 1:
        raise ValueError(f"the optimizer of {run.name} has several groups, and there it has one")
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
    """Let several processes do the job in a folder; return what each run has measured, by its name.

    Gradients travel over the loopback, which no other machine can reach.  But as long as they train,
    torchrun listens at the port where the processes meet on every address of this machine.

    Raises
    ------
    RuntimeError
        If it cannot be done, or a process ends early; the folder is then as it was.
    """
    results = folder / "there"
    if results.exists():
        raise RuntimeError(f"{results} is there already")
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
    """Return the environment for torchrun: ours, without its own defaults, and with the loopback."""
    settings = {k: v for k, v in os.environ.items() if not k.startswith("PET_")}
    settings["OMP_NUM_THREADS"] = "1"
    loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    if loopback:
        settings["GLOO_SOCKET_IFNAME"] = loopback[0]
    return settings


@contextlib.contextmanager
def ending_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as an exception does, so that it does not leave anything running."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def free_port(port: int | None = None) -> int:
    """Return a port of this machine that is free: this one, or any.

    Raises
    ------
    RuntimeError
        If this one is not.
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
    """Return in a line why the processes have ended early, from what they have printed.

    If one ends, the others complain of it, and torchrun reports at last which was the first.
    """
    first = printed.partition("Root Cause")[2]
    killed = re.search(r"Signal \d+ \(\w+\) received by PID \d+", first)
    said = re.search(r"torch_worker\.py: error: (.*)", printed)
    raised = [
        line
        for line in re.findall(r"^(?:\[rank\d+\]: )?(\w[\w.]*Error\b.*)", printed, re.MULTILINE)
        if "ChildFailedError" not in line  # which is torchrun's own
    ]
    if killed:
        return f"a process was killed: {killed[0]}"
    if said:
        return said[1]
    return raised[-1] if raised else "torchrun ended without a word"
