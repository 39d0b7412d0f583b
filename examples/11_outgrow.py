# %% [markdown]
"""
# Lesson 11: when one machine is not enough: the same adapter on PyTorch's distributed engine.

What you will see: adapters that begin here leave as files, are trained in PyTorch and PEFT by two
processes that each see half of every batch, and come back as if they had never been away.  A table says
how many bytes of gradients a process hands over at each step: 940,584 in full fine-tuning, and 26,568
for a DoRA of rank 4.  Then a training is begun here, continued there, and finished here.  The last part
is about what a step keeps in memory: three formulas are checked on this small net, and then applied to
one with 7 billion parameters.

Processes that train together split each batch.  Each computes the gradients for its own part, and then
all take the mean,

    g = (g1 + g2)/2    which is the gradient for the whole batch, if both parts are equally large,

so all of them take the same step.  At each step the gradients have to travel, and they are as large as
what is trained.  A frozen base does not travel: each process has read it from a file.

Why it matters: if you outgrow NumPy on one machine, you should lose nothing.  What was learnt here is a
small folder, and PyTorch reads it.

Read next: loradora/moments.py, loradora/model_files.py; examples/torch_worker.py, all that happens on the
other side; examples/two_processes.py, how it is started.  And then the real transformer:
examples/finetune_minilm.py, examples/minilm.py, examples/bert.py, examples/wordpiece.py,
examples/sentences.py, examples/machine.py, examples/torch_minilm.py.
"""

# %%
import terminal

parser = terminal.begin(__doc__)  # first, because the imports take a moment

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
# Before the work begins, the places for the results are checked.  Nothing is overwritten.

# %%
lacking = two_processes.lacking()
if lacking and (options.json or options.out or options.port):
    parser.error(f"--json, --out and --port need {', '.join(lacking)}")
if options.json:
    parser.expect_file("--json", options.json)
if options.out:
    parser.expect_directory("--out", options.out)
    if any(options.out.iterdir()):
        parser.error(f"argument --out: {options.out} is not empty")

# %% [markdown]
# ## 1. What leaves
#
# The base has learnt MNIST, and is to learn the optical digits, from 16 images of each digit.  All
# methods see the same batches, so these are drawn first, one row for each step.

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
# Full fine-tuning trains a copy of the base.  Each adapter starts with the same numbers there as here,
# because they are in its file.


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
# If you stay with NumPy, you need one file for the base and one for each adapter.

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
# PyTorch and PEFT read `.safetensors`.  `write_job` saves the base with `save_model`, each adapter into
# its own folder with `save_pretrained`, and the images beside them.  Then torchrun starts two processes,
# which read nothing else.  For each row of the table, one process of NumPy takes the same steps here.
# Both results are compared on 1,000 images that neither has seen.


# %%
@dataclass(frozen=True)
class Row:
    """The results of a method on both sides; times are in seconds, for all steps together."""

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
# With both models at hand, they can be compared.


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
# One more job is a DoRA that has taken a third of its steps here.  Its optimizer has a memory, which has
# to come along: AdamW's moments are running means over the steps so far.  `save_optimizer` writes them
# under the names that the parameters have in PEFT.  The next steps are taken there, and the last third
# here again.

# %%
third, rest = options.steps // 3, options.steps - options.steps // 3
interrupted = adapted(4, True)
adamw = ld.AdamW(interrupted.trainable_parameters(), **HOW)
train(interrupted, adamw, 0, third)
whole = adapted(4, True)
train(whole, ld.AdamW(whole.trainable_parameters(), **HOW))


def finished(with_moments):
    """Return the interrupted model, after the last third of its steps, which it takes here."""
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
# Without PyTorch and PEFT there is no other side.  Then the table shows what was measured on a machine
# that has them.


# %%
def travel():
    """Return the measured rows of the table, and how far off the interrupted training ends."""
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
    print(f"   To measure this, install {' and '.join(lacking)}")
    print("   (extra 'interop'): pip install torch peft safetensors")
    print("   Until then, here are 20 steps that were measured on another machine:\n")
else:
    rows, gaps = travel()

# %% [markdown]
# The bytes are counted in PyTorch, where a process hands over its gradients.  They are what the theory
# says: four for each number that is trained.  The seconds are for all steps together.  One process of
# NumPy is faster than two of PyTorch, because for so small a net a step is mostly function calls.
#
# The point is that both sides take the same steps.  Do not read from the accuracies which rank is best:
# there is one draw of images and one rate for all, and training has not converged after so few steps.

# %%
print("   method       trains  bytes/step     there      here  accuracy in % difference")
for row in rows:
    right = f"{100 * row.accuracy_there:.1f} | {100 * row.accuracy_here:.1f}"
    print(
        f"   {row.method:8} {row.trainable:10,} {row.bytes_per_step:11,} {row.seconds_there:7.3f} s "
        f"{row.seconds_here:7.3f} s {right:>14} {row.difference:10.0e}"
    )
relative = max(row.difference / row.largest for row in rows)
print("\n   The difference is the largest between a logit there and the same logit here:")
print(f"   at most {relative:.0e} of the largest logit.")
if gaps:
    print(f"   With {third} steps here, {rest - third} there and {third} here it is {gaps[0]:.0e},")
    print(f"   and {gaps[1]:.1f} if AdamW's moments are left behind.")
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
# FOLDER is what `--out FOLDER` leaves, without its folder `there`, on a disk that both machines see.
# Each batch is then split among 16 processes instead of two, so each gets two images.  Only the first
# process writes.
#
# ### NCCL
#
# Our two processes sent their gradients through gloo, which works on every CPU.  For NVIDIA's GPUs
# there is NCCL, which sends directly from one GPU to the next if there is a link between them.  In the
# worker, `init_process_group` then gets "nccl" instead of "gloo".  Each process has its own GPU, and
# torchrun tells it the number: `LOCAL_RANK`.  The worker moves the model there before it makes the
# optimizer, and the images too.
#
# Each process hands over as many bytes as before.  To take the mean of n processes around a ring, it
# sends 2 (n - 1)/n times as many: just as many if n = 2, and nearly twice as many if n = 16.
#
# ### FSDP
#
# `DistributedDataParallel` gives each process a whole copy of the base.  With 7 billion parameters that
# is 13.5 GB on every GPU, although none of its numbers change.  Fully sharded data parallelism, FSDP
# for short, gives each of n processes an nth of it.  Before a layer computes, its weights are put
# together from all parts, and afterwards they are dropped.  Now the base does travel: all of it on the
# way forward, and again on the way back.  The adapters on top are so small that it matters little how
# they are kept.
#
# In PyTorch the call is `fully_shard`, for each layer and finally for the model.  The command is
# torchrun, as before.  At the end the adapter is gathered and saved in the same form, so the way back
# here is the one you have seen.

# %% [markdown]
# ## 4. Where NumPy stops being the right tool
#
# In the table above NumPy is ahead, because at this size a step is mostly function calls, with hardly any
# arithmetic.  What grows with the net is the matrix products, and their speed depends on BLAS and on the
# machine.  This is what the README's table of speed says of LoRA steps on one core:
#
# - 784-256-128-10: a step takes PEFT 1.6 times as long as it takes here.
# - Three layers of 4,096: both take the same time.
# - Three layers of 1,024, with batches of 1,024: PyTorch draws level, because its products (MKL) are a
#   tenth faster than NumPy's (OpenBLAS).
# - The small GPT of lesson 10: PyTorch takes 0.9 of our time.
#
# So for layers of about a thousand or more, NumPy has no advantage on a CPU.
#
# A GPU is another matter.  None was at hand to measure, so here is the arithmetic.  The step with
# batches of 1,024 does 11 billion multiplications and additions in 54 ms, 0.2 TFLOP/s on one core.  The
# data sheet of an A100 says 19.5 TFLOP/s in float32: a hundred times that.  But every operation has to
# be launched, which takes a few microseconds on a GPU, and a LoRA step is about a hundred operations.
# So the first net, at 0.9 ms here, gains nothing, and the large one gains most of that factor.  If your
# steps take longer than a few tens of milliseconds, or your base is larger than the memory of your
# machine, it is time to leave NumPy.

# %% [markdown]
# ## 5. What fits into memory
#
# A step keeps three things:
#
# - the base: one number per parameter;
# - what is trained: for each number also its gradient and the two moments of AdamW, 16 bytes in float32;
# - the activations: what each layer has computed on the way forward, because the way back reads it.
#
# For each example, the activations are the outputs of every layer.  LoRA also keeps the r numbers of A x.
# DoRA, in addition, keeps the outputs twice: before and after they are multiplied by c = m/‖V‖.

# %%
SIZE = 1000  # images in one batch


def keeps(make):
    """Return what a function makes, and the bytes that it occupies."""
    tracemalloc.start()
    made = make()
    (size, _), _ = tracemalloc.get_traced_memory(), tracemalloc.stop()
    return made, size


def begun(name):
    """Return a new model of this kind, and its optimizer, after one step."""
    model = copy.deepcopy(base) if name == "full" else adapted(16, name == "DoRA")
    optimizer = ld.AdamW(model.trainable_parameters(), **HOW)
    train(model, optimizer, 0, 1)
    return model, optimizer


# %% [markdown]
# Each line of the table gives what the formula says, and what was measured.

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
# The same formulas can be applied to a net of 7 billion parameters, for example Llama 2
# (arXiv:2307.09288).  It is built like LLaMA (arXiv:2302.13971): 32 layers of width 4,096, each with
# seven matrices, three of which have 11,008 outputs or inputs.
#
# - The base: 6.74 billion parameters in 16 bits are 13.5 GB.
# - What is trained: LoRA with r = 16 on all seven matrices has 40.0 million numbers.  With gradients and
#   moments that makes 640 MB, and 160 MB of gradients are sent per step.  LoRA on q and v alone has 8.4
#   million, 134 MB.  Full fine-tuning in float32 keeps 108 GB, and sends 27 GB.
# - The activations: the seven matrices give 42,496 numbers per token and layer, and LoRA 112 more.  In
#   16 bits, 2,048 tokens through 32 layers are 5.6 GB.  What lies between the matrices, such as norms,
#   comes on top.  One count that includes it has 34 bytes for each token, layer and number of the width,
#   which makes 9.1 GB (arXiv:2205.05198; without the attention weights, which good kernels do not keep).
#   To keep only what enters each layer, and compute the rest again on the way back, takes 0.54 GB.
#
# So the 13.5 GB of the base are the largest part, and the adapter is the smallest.  That is why the
# base is stored in 4 bits (QLoRA, arXiv:2305.14314), or in parts (FSDP).  NumPy could hold every one of
# these arrays.  But a step over 2,048 tokens does about 4 operations per parameter and token, and at
# 0.2 TFLOP/s it would take nearly five minutes.
