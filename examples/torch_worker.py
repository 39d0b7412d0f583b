"""Goes on in PyTorch and PEFT with what was begun in NumPy: one of several processes.

    torchrun --nproc-per-node 2 torch_worker.py FOLDER

The folder holds a job, as ``two_processes.py`` writes it: ``job.json``, the base and the data as
``.safetensors``, and for each run an adapter as PEFT saves it, perhaps with the state of its optimizer.
Each process takes its share of every batch.  ``DistributedDataParallel`` replaces the gradients by their
mean over all processes, so that each makes the same step.  Nothing else travels, because each process
reads the base and the adapter for itself.

At the end the first process writes the folder ``there``: a folder for each run, and a report.  It appears
as a whole or not at all, and nothing else in the folder is touched.

Nothing of minigrad or loradora is imported: whoever goes on there needs PyTorch and PEFT alone.
"""

import argparse
import datetime
import hashlib
import json
import os
import shutil
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import peft
import safetensors
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

#: What is wrong with files, or between the processes, rather than here.
EXPECTED = OSError, ValueError, RuntimeError, KeyError, safetensors.SafetensorError

#: What AdamW remembers of a parameter, and its options.
MOMENTS = "exp_avg", "exp_avg_sq", "step"
OPTIONS = "betas", "eps", "lr", "weight_decay"


class Net(nn.Module):
    """What ``ld.MLP`` is, under the same names."""

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


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: dict[str, Any], batches: torch.Tensor
) -> dict[str, float]:
    """Take a step for each batch, of which each process has its share; return what was measured."""
    rank, processes = dist.get_rank(), dist.get_world_size()
    # by default the first process sends its whole model to the others, lest theirs differ
    parallel = DistributedDataParallel(model, init_sync=False)
    sent: list[int] = []

    def counted(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """Do what is done with a bucket of gradients anyhow, and note its bytes."""
        sent.append(bucket.buffer().nbytes)
        return allreduce_hook(group, bucket)

    parallel.register_comm_hook(None, counted)
    begin = time.perf_counter()
    for batch in batches:
        own = batch[rank::processes]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(parallel(data["x"][own]), data["labels"][own])
        loss.backward()
        optimizer.step()
    return {"seconds": time.perf_counter() - begin, "bytes": sum(sent) / len(batches)}


def go_on(optimizer: torch.optim.Optimizer, names: list[str], tensors: dict[str, Any]) -> None:
    """Let an optimizer go on from moments that are called by the names of the parameters."""
    state = optimizer.state_dict()
    state["state"] = {
        number: {moment: tensors[f"state.{name}.{moment}"] for moment in MOMENTS}
        for number, name in enumerate(names)
    }
    optimizer.load_state_dict(state)


def moments(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Any]:
    """Return what an optimizer remembers, by the names of the parameters, and its options."""
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
    model: Any = Net(job["sizes"])
    model.load_state_dict(load_file(folder / "base.safetensors"))
    if not run["full"]:
        model = peft.PeftModel.from_pretrained(model, folder / run["name"], is_trainable=True)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), **job["optimizer"])
    file = folder / run["name"] / "optimizer.safetensors"
    if file.exists():
        go_on(optimizer, [*trained], load_file(file))
    return model, [*trained], optimizer


def work(folder: Path, job: dict[str, Any], place: Path) -> dict[str, Any]:
    """Do all runs of a job; the first process writes what comes of them into ``place``."""
    data = load_file(folder / "data.safetensors")
    report = {}
    for run in job["runs"]:
        name = run["name"]
        try:
            model, trained, optimizer = begin(folder, job, run)
        except EXPECTED as error:
            raise ValueError(f"cannot begin {folder / name}: {error}") from error
        batches = data["batches"][run["start"] : run["stop"]]
        report[name] = train(model, optimizer, data, batches)
        if dist.get_rank() == 0:
            (place / name).mkdir()
            if run["full"]:
                save_file(model.state_dict(), place / name / "model.safetensors")
            else:
                model.save_pretrained(place / name)
            save_file(moments(optimizer, trained), place / name / "optimizer.safetensors")
    return report


def check(folder: Path) -> dict[str, Any]:
    """Return the job in a folder, if it can be done; ValueError says why not."""
    unset = [
        name
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        if name not in os.environ
    ]
    if unset:
        raise ValueError(f"start it with torchrun: {', '.join(unset)} is not set")
    try:
        job: dict[str, Any] = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / 'job.json'} is damaged: {error}") from error
    for name, digest in job["digests"].items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            raise ValueError(f"{folder / name} is not the file that the adapters were made for")
    processes = int(os.environ["WORLD_SIZE"])
    if job["batch"] % processes:
        raise ValueError(
            f"a batch of {job['batch']} cannot be shared out evenly to {processes} processes"
        )
    if (folder / "there").exists():
        raise ValueError(f"{folder / 'there'} is there already")
    return job


def main(folder: Path) -> None:
    """Do the job in a folder, together with the other processes."""
    job = check(folder)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    place = folder / ".there"
    if dist.get_rank() == 0:
        shutil.rmtree(place, ignore_errors=True)  # what a process that was killed has left
        place.mkdir()
    report = work(folder, job, place)
    if dist.get_rank() == 0:
        (place / "report.json").write_text(json.dumps(report), encoding="utf-8")
        place.rename(folder / "there")
    dist.destroy_process_group()


if __name__ == "__main__":
    try:
        parser = argparse.ArgumentParser(description="One of several processes; see torchrun.")
        parser.add_argument("folder", type=Path, help="where the job is")
        main(parser.parse_args().folder)
    except EXPECTED as error:
        sys.exit(f"torch_worker.py: error: {' '.join(str(error).split())}")
