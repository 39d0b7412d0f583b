"""Continues in PyTorch and PEFT what was begun in NumPy: one of several processes.

    torchrun --nproc-per-node 2 torch_worker.py FOLDER

The folder holds a job, as ``two_processes.py`` writes it: ``job.json``, the base and the data as
``.safetensors``, and a folder for each run.  A run's folder holds an adapter as PEFT saves it, or a whole
model.  If the run has already begun, it also holds the state of the optimizer.

Each process takes its share of every batch.  ``DistributedDataParallel`` replaces the gradients by their
mean over all processes, so that all take the same step.  Nothing else travels, because each process
reads the base and the adapter for itself.

At the end the first process writes the folder ``there``: a folder for each run, and a report.  It appears
as a whole or not at all, and nothing else in the folder is touched.

Neither minigrad nor loradora is imported: PyTorch and PEFT are all that is needed here.
"""

import argparse
import hashlib
import json
import os
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import peft
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

#: Files of a run, besides those of PEFT.
MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"

#: What AdamW remembers of a parameter, and its options.
MOMENTS = "exp_avg", "exp_avg_sq", "step"
OPTIONS = "betas", "eps", "lr", "weight_decay"


class Net(nn.Module):
    """The same net as ``ld.MLP``, whose parameters have the same names."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, following in pairwise(sizes):
            layers += [nn.Linear(width, following), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.layers(x)


# ---------------------------------------------------------------------------- training


def share(batch: torch.Tensor, rank: int, processes: int) -> torch.Tensor:
    """Return the part of a batch that one of several processes computes."""
    return batch[rank::processes]


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: dict[str, Any], batches: torch.Tensor
) -> dict[str, float]:
    """Take a step for each batch; return the seconds in all, and the bytes and examples per step."""
    # by default the first process sends its whole model to the others; here all have read the same
    parallel = DistributedDataParallel(model, init_sync=False)
    sent: list[int] = []
    seen: list[int] = []

    def counted(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """Average a bucket of gradients, as is done by default, and note its bytes."""
        sent.append(bucket.buffer().nbytes)
        return allreduce_hook(group, bucket)

    parallel.register_comm_hook(None, counted)
    begin = time.perf_counter()
    for batch in batches:
        own = share(batch, dist.get_rank(), dist.get_world_size())
        seen.append(len(own))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(parallel(data["x"][own]), data["labels"][own])
        loss.backward()
        optimizer.step()
    seconds = time.perf_counter() - begin
    steps = len(batches)
    return {"seconds": seconds, "bytes": sum(sent) / steps, "examples": sum(seen) / steps}


def go_on(optimizer: torch.optim.Optimizer, names: list[str], tensors: dict[str, Any]) -> None:
    """Let an optimizer continue from moments that are stored under the names of the parameters."""
    state = optimizer.state_dict()
    state["state"] = {
        number: {moment: tensors[f"state.{name}.{moment}"] for moment in MOMENTS}
        for number, name in enumerate(names)
    }
    optimizer.load_state_dict(state)


def moments(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Any]:
    """Return an optimizer's moments, under the names of the parameters, and its options."""
    state = optimizer.state_dict()
    (group,) = state["param_groups"]
    named = {
        f"state.{name}.{moment}": state["state"][number][moment]
        for number, name in enumerate(names)
        for moment in MOMENTS
    }
    options = {f"param_groups.{n}.{o}": group[o] for n in names for o in OPTIONS}
    return named | {key: torch.tensor(value, dtype=torch.float64) for key, value in options.items()}


# ---------------------------------------------------------------------------- a job


def begin(folder: Path, job: dict[str, Any], run: dict[str, Any]) -> Any:
    """Return the model of a run, the names of what it trains, and its optimizer."""
    place = folder / run["name"]
    model: Any = Net(job["sizes"])
    model.load_state_dict(load_file(place / MODEL if run["full"] else folder / "base.safetensors"))
    if not run["full"]:
        model = peft.PeftModel.from_pretrained(model, place, is_trainable=True)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), **run["optimizer"])
    if run["begun"]:
        go_on(optimizer, [*trained], load_file(place / OPTIMIZER))
    return model, [*trained], optimizer


def work(folder: Path, job: dict[str, Any], place: Path) -> dict[str, Any]:
    """Do all runs of a job; the first process writes the results into ``place``."""
    data = load_file(folder / "data.safetensors")
    report = {}
    for run in job["runs"]:
        name = run["name"]
        try:
            model, trained, optimizer = begin(folder, job, run)
        except Exception as error:
            raise ValueError(f"cannot begin {folder / name}: {said(error)}") from error
        batches = data["batches"][run["start"] : run["stop"]]
        report[name] = train(model, optimizer, data, batches)
        if dist.get_rank() == 0:
            (place / name).mkdir()
            if run["full"]:
                save_file(model.state_dict(), place / name / MODEL)
            else:
                model.save_pretrained(place / name)
            save_file(moments(optimizer, trained), place / name / OPTIMIZER)
    return report


def check(folder: Path) -> dict[str, Any]:
    """Return the job in a folder, if it can be done; ValueError says why not."""
    needed = "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"
    unset = [name for name in needed if name not in os.environ]
    if unset:
        raise ValueError(f"start it with torchrun: {', '.join(unset)} is not set")
    try:
        job: dict[str, Any] = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / 'job.json'} is damaged: {error}") from error
    for name, digest in job["digests"].items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            raise ValueError(f"{folder / name} is not the file that the job was written for")
    steps, size = load_file(folder / "data.safetensors")["batches"].shape
    for run in job["runs"]:
        if not 0 <= run["start"] < run["stop"] <= steps:
            raise ValueError(f"{run['name']} has no steps from {run['start']} to {run['stop']}")
    processes = int(os.environ["WORLD_SIZE"])
    if size % processes:
        raise ValueError(f"a batch of {size} cannot be split evenly among {processes} processes")
    if (folder / "there").exists():
        raise ValueError(f"{folder / 'there'} already exists")
    return job


def main(folder: Path) -> None:
    """Do the job in a folder, together with the other processes."""
    job = check(folder)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    # named after the port, which a second launch in this folder cannot share
    place = folder / f".there-{os.environ['MASTER_PORT']}"
    if dist.get_rank() == 0:
        place.mkdir()
    report = work(folder, job, place)
    if dist.get_rank() == 0:
        (place / "report.json").write_text(json.dumps(report), encoding="utf-8")
        place.rename(folder / "there")
    dist.destroy_process_group()


# ---------------------------------------------------------------------------- how it ends


def said(error: Exception) -> str:
    """Return an error in one line, with its type unless the message is clear without it."""
    clear = isinstance(error, (OSError, ValueError, RuntimeError))
    return ("" if clear else f"{type(error).__name__}: ") + " ".join(str(error).split())


def end_with(parent: int) -> None:
    """End this process when torchrun is gone and can no longer end it."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One of several processes; see torchrun.")
    parser.add_argument("folder", type=Path, help="where the job is")
    chosen = parser.parse_args()
    threading.Thread(target=end_with, args=[os.getppid()], daemon=True).start()
    try:
        main(chosen.folder)
    except Exception as error:
        # in one piece, because the other processes may be writing too
        os.write(2, f"torch_worker.py: error: {said(error)}\n".encode())
        sys.exit(1)
