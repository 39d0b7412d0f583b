# %% [markdown]
"""
# Lesson 11: when one machine is not enough: the same adapter on PyTorch's distributed engine.

What you will see: adapters that are begun here leave as files, go on in PyTorch and PEFT, in two
processes that each see half of every batch, and come back as if they had never been away.  A table says
how many bytes of gradients a process hands over at each step: 940,584 in full fine-tuning, and 26,568
for a DoRA of rank 4.  Then a training is interrupted here, goes on there and ends here.  At last, what
a step keeps in memory: three formulas, checked on this small net, and what they say of one with 7
billion parameters.

Processes that train together split each batch.  Each computes the gradients for its own part, and then
all take the mean,

    g = (g1 + g2)/2    which is the gradient for the whole batch, if both parts are equally large,

so all of them make the same step.  The mean has to travel, at each step, and it is as large as what is
trained.  Of a frozen base nothing travels: each process has read it from a file.

Why it matters: whoever outgrows NumPy on one machine should lose nothing.  What was learnt here is a
small folder, and PyTorch reads it.

Read next: loradora/moments.py, loradora/model_files.py; examples/torch_worker.py, all that happens on the
other side; examples/two_processes.py, how it is started.  And then the real transformer:
examples/finetune_minilm.py, examples/minilm.py, examples/bert.py, examples/wordpiece.py,
examples/sentences.py, examples/machine.py, examples/torch_minilm.py.
"""

# %%
import terminal

parser = terminal.begin(__doc__)  # first, for the imports take a moment

import copy
import json
import os
import tempfile
import time
import tracemalloc
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy starts: these products are small

import numpy as np
import two_processes
from digits import few, mnist, optdigits, pretrained
from two_processes import Run

import loradora as ld
import minigrad as mg

# %% [markdown]
# A notebook has no command line.  There, change the defaults below.

# %%
MEASURED = Path(terminal.__file__).parent / "figures" / "11_outgrow.json"

add = parser.add_argument
add("--ranks", nargs="+", type=int, default=[1, 2, 4, 8, 16], metavar="R", help="(1 2 4 8 16)")
add("--steps", type=int, default=20, help="of each training, on batches of 32 (20; at least 3)")
add("--port", type=int, help="where the processes meet (any that is free)")
add("--out", type=Path, metavar="DIR", help="keep all files there")
add("--json", type=Path, metavar="FILE", help="write the table, an object for each row")
options = parser.parse_args()
if options.steps < 3 or not all(1 <= r <= 128 for r in options.ranks):
    parser.error("--steps is at least 3, and each of --ranks 1 to 128")
try:
    two_processes.free_port(options.port)
except RuntimeError as error:
    parser.error(f"argument --port: {error}")

# %% [markdown]
# Nothing is begun that could not be kept, and nothing is written over.

# %%
lacking = two_processes.lacking()
if lacking and (options.json or options.out or options.port):
    parser.error(
        f"without {', '.join(lacking)} nothing travels that --json, --out or --port concern"
    )
if options.json:
    parser.expect_file("--json", options.json)
if options.out:
    parser.expect_directory("--out", options.out)
    if any(options.out.iterdir()):
        parser.error(f"argument --out: {options.out} is not empty")

# %% [markdown]
# ## 1. What leaves
#
# The base has learnt MNIST, and is to learn the optical digits, from 16 images of each.  All methods
# see the same batches.  So these are drawn first, a row for each step.

# %%
temporary = tempfile.TemporaryDirectory()
folder = options.out or Path(temporary.name)
rng = np.random.default_rng(0)
base, new = pretrained(mnist().train, rng, steps=470), optdigits()
images = few(new.train, 16, rng)
epochs = -(-options.steps // 5)
batches = np.concatenate([rng.permutation(160).reshape(5, 32) for _ in range(epochs)])
batches = batches[: options.steps]

HOW = {"lr": 0.01, "weight_decay": 0.0}  # of AdamW, on both sides


def train(model, optimizer, start=0, stop=options.steps):
    """Take the steps from ``start`` to ``stop`` here, in one process."""
    for batch in batches[start:stop]:
        optimizer.zero_grad()
        mg.cross_entropy(model(images.x[batch]), images.y[batch]).backward()
        optimizer.step()


# %% [markdown]
# Full fine-tuning trains a copy of the base.  Each adapter starts where it would here: that is what its
# file holds.


# %%
def adapted(rank, use_dora):
    """Return the base with a new adapter of all its layers."""
    config = ld.LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", use_dora=use_dora
    )
    return ld.get_peft_model(base, config, rng=rank)


models = {"full": copy.deepcopy(base)}
for rank in options.ranks:
    models |= {f"LoRA-{rank}": adapted(rank, False), f"DoRA-{rank}": adapted(rank, True)}
optimizers = {name: ld.AdamW(m.trainable_parameters(), **HOW) for name, m in models.items()}

# %% [markdown]
# Whoever stays with NumPy takes one file for the base and one for each adapter.

# %%
ld.save_model(folder / "base.npz", base)
name, adapter = list(models.items())[-1]
adapter.save_adapter(folder / f"{name}.npz")
print("1. What leaves\n")
for file in (folder / "base.npz", folder / f"{name}.npz"):
    print(f"   {file.name:12} {file.stat().st_size:9,} bytes")

# %% [markdown]
# ## 2. There and back
#
# PyTorch and PEFT read `.safetensors`.  `write_job` saves the base with `save_model`, the adapters with
# `save_pretrained`, each into a folder, and beside them the images.  Then torchrun starts two processes,
# which read nothing else.  For a row of the table the same steps are taken here, too, by one process of
# NumPy.  Both results are compared on 1,000 images that neither has seen.


# %%
@dataclass(frozen=True)
class Row:
    """What became of a method on both sides; times in seconds, all steps together."""

    method: str
    trainable: int
    bytes_per_step: int
    seconds_there: float
    seconds_here: float
    accuracy_there: float
    accuracy_here: float
    difference: float
    """The largest between a logit there and the same logit here."""
    largest: float
    """The largest logit."""


def come_back(name):
    """Return the model that was trained there, from its files."""
    if name != "full":
        return ld.PeftModel.from_pretrained(base, folder / "there" / name)
    model = copy.deepcopy(base)
    ld.load_model(folder / "there" / name / "model.safetensors", model)
    return model


# %% [markdown]
# So much for the files.  The comparison:


# %%
def compare(name, report):
    """Train a model here, and compare it with the one that was trained there."""
    here, there = models[name], come_back(name)
    begin = time.perf_counter()
    train(here, optimizers[name])
    seconds = time.perf_counter() - begin
    logits = [model.eval()(new.test.x).data for model in (there, here)]
    right = [float(np.mean(z.argmax(axis=1) == new.test.y)) for z in logits]
    return Row(
        name,
        sum(p.size for p in here.trainable_parameters()),
        round(report["bytes"]),
        report["seconds"],
        seconds,
        *right,
        float(np.abs(logits[0] - logits[1]).max()),
        float(np.abs(logits[1]).max()),
    )


# %% [markdown]
# ### The training that is interrupted
#
# One more job: a DoRA that has gone a third of its way here.  An optimizer has a memory, and it must
# come along: AdamW's moments are running means over the steps so far.  `save_optimizer` writes them
# under the names that the parameters have in PEFT.  The last third is taken here again.

# %%
third, rest = options.steps // 3, options.steps - options.steps // 3
interrupted = adapted(4, True)
adamw = ld.AdamW(interrupted.trainable_parameters(), **HOW)
train(interrupted, adamw, 0, third)
whole = adapted(4, True)
train(whole, ld.AdamW(whole.trainable_parameters(), **HOW))


def finished(with_moments):
    """Return the interrupted model, the last third of its steps taken here."""
    place = folder / "there" / "interrupted"
    model = ld.PeftModel.from_pretrained(base, place, is_trainable=True)
    optimizer = ld.AdamW(model.trainable_parameters(), **HOW)
    if with_moments:
        ld.load_optimizer(place / "optimizer.safetensors", optimizer, model)
    train(model, optimizer, rest)
    return model


# %% [markdown]
# ### The journey
#
# Without PyTorch and PEFT there is no other side.  Then the table is the one that was measured on a
# machine that has them.


# %%
def travel():
    """Return the rows of the table, measured; and how far the interrupted training is off."""
    steps = options.steps
    runs = [Run(name, models[name], optimizers[name], 0, steps) for name in models]
    runs.append(Run("interrupted", interrupted, adamw, third, rest))
    data = {"x": images.x, "labels": images.y, "batches": batches}
    two_processes.write_job(folder, base, data, runs)
    for file in ("base.safetensors", f"{name}/adapter_model.safetensors"):
        print(f"   {file:34} {(folder / file).stat().st_size:9,} bytes go there")
    print()
    try:
        report = two_processes.train(folder, port=options.port)
    except RuntimeError as error:
        parser.exit(1, f"11_outgrow.py: error: training in PyTorch failed: {error}\n")
    goal = whole.eval()(new.test.x).data
    gaps = [np.abs(finished(m).eval()(new.test.x).data - goal).max() for m in (True, False)]
    return [compare(name, report[name]) for name in models], gaps


print(f"\n2. {options.steps} steps there, in two processes, and here, in one\n")
if lacking:
    rows, gaps = [Row(**row) for row in json.loads(MEASURED.read_text(encoding="utf-8"))], None
    print(f"   To be measured, this needs {' and '.join(lacking)}")
    print("   (extra 'interop'): pip install torch peft safetensors")
    print("   So here are 20 steps as another machine has measured them:\n")
else:
    rows, gaps = travel()

# %% [markdown]
# The bytes are counted in PyTorch, where a process hands over its gradients.  They are what the theory
# says: four for each number that is trained.  The seconds are of all steps together.  One process of
# NumPy is ahead of two of PyTorch, because for so small a net a step is mostly calls.  Do not read from
# the accuracies which rank is best: that is one draw of images, and one rate for all of them.  Nor has
# training converged after so few steps.  The subject is that both sides take the same steps.

# %%
print("   method       trains  bytes/step     there      here  accuracy in % difference")
for row in rows:
    right = f"{100 * row.accuracy_there:.1f} | {100 * row.accuracy_here:.1f}"
    print(
        f"   {row.method:8} {row.trainable:10,} {row.bytes_per_step:11,} {row.seconds_there:7.3f} s "
        f"{row.seconds_here:7.3f} s {right:>14} {row.difference:10.0e}"
    )
relative = max(row.difference / row.largest for row in rows)
print("\n   The difference is the largest between a logit there and the same logit here;")
print(f"   of the largest logit it is {relative:.0e}.")
if gaps:
    print(f"   With {third} steps here, {rest - third} there and {third} here it is {gaps[0]:.0e},")
    print(f"   and {gaps[1]:.1f} if what AdamW remembers is left behind.")
if options.json:
    text = json.dumps([asdict(row) for row in rows], indent=2) + "\n"
    options.json.write_text(text, encoding="utf-8")
    print(f"\n   The table as JSON: {options.json}")
temporary.cleanup()

# %% [markdown]
# ## 3. Several machines
#
# The two processes met at the loopback, an address that leads back to the same machine.  On two
# machines with eight GPUs each, the same worker is started on both, with the address of the first:
#
#     torchrun --nnodes 2 --node-rank 0 --nproc-per-node 8 --master-addr 10.0.0.1 torch_worker.py FOLDER
#     torchrun --nnodes 2 --node-rank 1 --nproc-per-node 8 --master-addr 10.0.0.1 torch_worker.py FOLDER
#
# FOLDER is what `--out FOLDER` leaves, without the folder `there` in it, on a disk that both machines
# see.  What was shared out to two processes is then shared out to 16, two images of a batch to each.  The
# first process alone writes.
#
# ### NCCL
#
# Our two processes sent their gradients by gloo, which works on every CPU.  For GPUs of NVIDIA there is
# NCCL, which sends from one GPU to the next directly, where there is a line between them.  In the
# worker, `init_process_group` then gets "nccl" in the place of "gloo".  Before the optimizer is made, the
# model is moved to a GPU of its own, of which torchrun tells each process the number, `LOCAL_RANK`.  And
# so are the images.  Each process hands over as many bytes as before.  To get the mean of n processes
# around a ring, it sends 2 (n - 1)/n times as many: just as many if n = 2, and nearly twice as many if
# there are 16.
#
# ### FSDP
#
# `DistributedDataParallel` gives each process a whole copy of the base.  With 7 billion parameters that
# is 13.5 GB on every GPU, although nobody changes a single one of them.  Fully sharded data parallelism,
# FSDP for short, gives each of n processes an nth part.  Before a layer computes, it is put together
# from all parts, and afterwards it is dropped.  Now the base does travel: all of it on the way forward,
# and again on the way back.  The adapters on top are so small that it matters little how they are kept.
# In PyTorch the call is `fully_shard`, for each layer and at last for the model; the command is torchrun,
# as before.  At the end the adapter is gathered and saved in the same form, so the way back here is the
# one you have seen.

# %% [markdown]
# ## 4. Where NumPy stops being the right tool
#
# In the table above NumPy is ahead, because at this size a step is mostly calls, and hardly any
# arithmetic.  What grows with the net is the matrix products, and there it
# is BLAS that counts, and the machine.  On one core, by the README's table of speed: a LoRA step of
# 784-256-128-10 takes PEFT 1.6 times as long as it takes here, one of three layers of 4,096 takes both
# the same, and with batches of 1,024 through three layers of 1,024 PyTorch draws level, because its
# products (MKL) are a tenth faster than those of NumPy (OpenBLAS).  For the small GPT of lesson 10 it
# takes 0.9 of our time.  From layers of about a thousand on, then, NumPy wins nothing on a CPU.
#
# A GPU is another matter.  None was at hand to be measured, so here is the arithmetic.  That step with
# batches of 1,024 does 11 billion multiplications and additions in 54 ms, 0.2 TFLOP/s on one core.  The
# data sheet of an A100 says 19.5 TFLOP/s in float32: a hundred times that.  But every operation has to
# be launched, which takes a GPU some microseconds, and a LoRA step is some hundred of them.  So the
# first net, at 0.9 ms here, gains nothing, and the large one nearly everything.  If your steps take
# longer than some tens of milliseconds, or your base is larger than the memory of your machine, it is
# time to leave.

# %% [markdown]
# ## 5. What fits into memory
#
# A step keeps three things.  The base: one number per parameter.  What is trained: the number itself,
# its gradient, and the two moments of AdamW, in float32 16 bytes.  And the activations: what each layer
# has computed on the way forward, because the way back reads it.  That is, per example, the number of
# outputs of each layer; for LoRA also the r numbers of A x; and for DoRA the outputs twice, before and
# after they are multiplied by c = m/‖V‖.

# %%
SIZE = 1000  # images in one batch


def keeps(make):
    """Return what a function makes, and the bytes that it occupies."""
    tracemalloc.start()
    made = make()
    (size, _), _ = tracemalloc.get_traced_memory(), tracemalloc.stop()
    return made, size


def begun(name):
    """Return a new model of this kind, and its optimizer, after a step."""
    model = copy.deepcopy(base) if name == "full" else adapted(16, name == "DoRA")
    optimizer = ld.AdamW(model.trainable_parameters(), **HOW)
    train(model, optimizer, 0, 1)
    return model, optimizer


# %% [markdown]
# Each line of the table is a formula, and what is really there.

# %%
outputs = sum(layer.out_features for layer in base.layers if isinstance(layer, ld.Linear))
ranks = 3 * 16
x, y = new.test.x[:SIZE], new.test.y[:SIZE]
kept = {"full": outputs, "LoRA": outputs + ranks, "DoRA": 2 * outputs + ranks}

print(f"\n3. What a step keeps, r = 16, {SIZE:,} images at a time, in bytes\n")


def show(what, formula, measured):
    """Print a line of the table."""
    print(f"   {what:24} {formula:13,} {measured:13,}")


print("                               by formula      measured")
_, size = keeps(lambda: copy.deepcopy(base))
show("base, 4 P", 4 * sum(p.size for p in base.parameters()), size)
for name, numbers in kept.items():
    (model, optimizer), size = keeps(lambda name=name: begun(name))
    show(f"{name}, trained, 16 n", 16 * sum(p.size for p in model.trainable_parameters()), size)
    loss, size = keeps(lambda model=model: mg.cross_entropy(model(x), y))
    show(f"{name}, activations, 4 N", 4 * SIZE * numbers, size)

# %% [markdown]
# The same formulas for a net of 7 billion parameters, for example Llama 2 (arXiv:2307.09288).  It is
# built like LLaMA (arXiv:2302.13971): 32 layers of width 4,096, each with seven matrices, three of them
# with 11,008 outputs or inputs.
#
# - The base: 6.74 billion parameters in 16 bits are 13.5 GB.
# - What is trained: LoRA with r = 16 on all seven matrices has 40.0 million numbers.  With gradients and
#   moments that makes 640 MB, and 160 MB of gradients are sent per step.  LoRA on q and v alone has 8.4
#   million, 134 MB.  Full fine-tuning in float32 keeps 108 GB, and sends 27 GB.
# - The activations: the seven matrices give 42,496 numbers per token and layer, and LoRA 112 more.  In
#   16 bits, 2,048 tokens through 32 layers are 5.6 GB.  What lies between the matrices, such as norms,
#   comes on top: with all of it, one count is 34 bytes for each token, layer and number of the width,
#   which makes 9.1 GB (arXiv:2205.05198; without the attention weights, which good kernels do not keep).
#   To keep only what enters each layer, and compute the rest again on the way back, takes 0.54 GB.
#
# So the 13.5 GB of the base are the largest part, and the adapter is the smallest.  That is why the
# base is stored in 4 bits (QLoRA, arXiv:2305.14314), or in parts (FSDP).  None of it is an array that
# NumPy could not hold.  But at 0.2 TFLOP/s a step over 2,048 tokens, about 4 operations per parameter
# and token, would take nearly five minutes.
