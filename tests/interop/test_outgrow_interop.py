"""Two processes of PyTorch that share each batch make the steps of one process here, and lose no file."""

import copy
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import loradora as ld
import minigrad as mg

NEEDED = "needs the extra `interop`: pip install -e '.[interop]'"
torch = pytest.importorskip("torch", reason=NEEDED)
peft = pytest.importorskip("peft", reason=NEEDED)
pytest.importorskip("safetensors", reason=NEEDED)
twins = pytest.importorskip("twins", reason=NEEDED)

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = [7, 12, 9, 5]
OPTIONS = {"lr": 0.01, "weight_decay": 0.1}
STEPS = 20
KINDS = {
    "LoRA": {},
    "DoRA": {"use_dora": True},
    "biases": {"bias": "all", "use_dora": True},
    "a whole layer": {"target_modules": ["0"], "modules_to_save": ["2"]},
}


@pytest.fixture
def two_processes(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return __import__("two_processes")


def data(steps=STEPS, batch=16):
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(64, 7)).astype(np.float32), rng.integers(5, size=64)
    rows = -(-steps * batch // 64)
    order = np.concatenate([rng.permutation(64) for _ in range(rows)])
    return {"x": x, "labels": labels, "batches": order[: steps * batch].reshape(steps, batch)}


def adamw(model):
    return ld.AdamW(model.trainable_parameters(), **OPTIONS)


def train(model, optimizer, start=0, stop=STEPS):
    """Take these steps here, in one process."""
    given = data()
    for batch in given["batches"][start:stop]:
        optimizer.zero_grad()
        mg.cross_entropy(model.train()(given["x"][batch]), given["labels"][batch]).backward()
        optimizer.step()
    return model.eval()


def adapted(base, kind):
    options = {"r": 3, "lora_alpha": 6, "target_modules": ["0", "2"]} | KINDS[kind]
    return ld.get_peft_model(base, ld.LoraConfig(**options), rng=1)


def close(one, other):
    """The same function, to 1e-4 of its largest value."""
    x = data()["x"]
    expected = other.eval()(x).data
    assert np.abs(one.eval()(x).data - expected).max() <= 1e-4 * np.abs(expected).max()


def content(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def job(two_processes, tmp_path):
    """Return a function that writes a job of one DoRA into a folder, with few steps by default."""

    def write(steps=2):
        base = ld.MLP(SIZES, rng=0)
        model = adapted(base, "DoRA")
        run = two_processes.Run("DoRA", model, adamw(model), 0, steps)
        two_processes.write_job(tmp_path, base, data(steps), [run])
        return content(tmp_path)

    return write


# ----------------------------------------------------------------------------- the same training


def test_what_begins_here_is_trained_by_two_processes_as_by_one_here(two_processes, tmp_path):
    base = ld.MLP(SIZES, rng=0)
    models = {"full": copy.deepcopy(base)} | {kind: adapted(base, kind) for kind in KINDS}
    runs = [two_processes.Run(n, model, adamw(model), 0, STEPS) for n, model in models.items()]
    two_processes.write_job(tmp_path, base, data(), runs)
    report = two_processes.train(tmp_path)
    for name, model in models.items():
        back = copy.deepcopy(base)
        if name == "full":
            ld.load_model(tmp_path / "there" / name / "model.safetensors", back)
        else:
            back = ld.PeftModel.from_pretrained(base, tmp_path / "there" / name)
        start = model.eval()(data()["x"]).data
        close(back, train(model, adamw(model)))
        assert np.abs(back(data()["x"]).data - start).max() > 0.1  # it has learnt
        assert report[name]["bytes"] == 4 * sum(p.size for p in model.trainable_parameters())
        assert report[name]["examples"] == 16 / 2


def test_what_begins_there_is_trained_here_as_by_two_processes(two_processes, tmp_path):
    """This includes half of it there and half here, with the moments exchanged."""
    theirs = twins.net()
    base, there, runs = twins.twin(theirs), tmp_path / "there", []
    for kind in KINDS:
        model = adapted(base, kind)
        every = two_processes.Run(kind, model, adamw(model), 0, STEPS)
        runs += [every, every._replace(name=f"half of {kind}", stop=STEPS // 2)]
    two_processes.write_job(tmp_path, base, data(), runs)
    for kind, options in KINDS.items():  # in the place of ours
        options = {"r": 3, "lora_alpha": 6, "target_modules": ["0", "2"]} | options
        adapter = peft.get_peft_model(copy.deepcopy(theirs), peft.LoraConfig(**options))
        adapter.save_pretrained(str(tmp_path / kind))
        adapter.save_pretrained(str(tmp_path / f"half of {kind}"))
    two_processes.train(tmp_path)

    for kind in KINDS:
        goal = ld.PeftModel.from_pretrained(base, there / kind)
        here = ld.PeftModel.from_pretrained(base, tmp_path / kind, is_trainable=True)
        close(train(here, adamw(here)), goal)
        half = ld.PeftModel.from_pretrained(base, there / f"half of {kind}", is_trainable=True)
        optimizer = adamw(half)
        ld.load_optimizer(there / f"half of {kind}" / "optimizer.safetensors", optimizer, half)
        close(train(half, optimizer, STEPS // 2), goal)


def test_a_training_that_is_interrupted_here_ends_there(two_processes, tmp_path):
    """Its optimizer has options of its own, and they are passed on."""
    base, runs = ld.MLP(SIZES, rng=0), []
    models = {kind: adapted(base, kind) for kind in KINDS} | {"full": copy.deepcopy(base)}
    options = {"lr": 0.02, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.3}
    for name, model in models.items():
        optimizer = ld.AdamW(model.trainable_parameters(), **options)
        train(model, optimizer, 0, STEPS // 2)
        runs.append(two_processes.Run(name, model, optimizer, STEPS // 2, STEPS))
    two_processes.write_job(tmp_path, base, data(), runs)
    two_processes.train(tmp_path)
    for name in models:
        whole = copy.deepcopy(base) if name == "full" else adapted(base, name)
        goal = train(whole, ld.AdamW(whole.trainable_parameters(), **options))
        back = copy.deepcopy(base)
        if name == "full":
            ld.load_model(tmp_path / "there" / name / "model.safetensors", back)
        else:
            back = ld.PeftModel.from_pretrained(base, tmp_path / "there" / name)
        close(back, goal)


def test_the_worker_imports_nothing_of_ours():
    text = (EXAMPLES / "torch_worker.py").read_text(encoding="utf-8")
    imported = set(re.findall(r"^ *(?:from|import) (\w+)", text, re.MULTILINE))
    assert imported - sys.stdlib_module_names == {"peft", "safetensors", "torch"}


def test_the_commands_for_two_machines_work(job, tmp_path):
    """Here both machines are this one, with one process each."""
    job()
    lesson = (EXAMPLES / "11_outgrow.py").read_text(encoding="utf-8")
    commands = re.findall(r"^#     torchrun (.* torch_worker\.py) FOLDER$", lesson, re.MULTILINE)
    assert len(commands) == 2
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    local = {
        "10.0.0.1": "127.0.0.1",
        "8": "1",
        "torch_worker.py": str(EXAMPLES / "torch_worker.py"),
    }
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--master-port", port]
            + [local.get(word, word) for word in command.split()]
            + [str(tmp_path)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    for node in nodes:
        _, printed = node.communicate()
        assert node.returncode == 0, printed
    assert (tmp_path / "there" / "DoRA" / "adapter_model.safetensors").exists()


# ----------------------------------------------------------------------------- what goes wrong


def test_a_job_that_is_another_training_is_not_written(two_processes, job, tmp_path):
    base = ld.MLP(SIZES, rng=0)
    model = adapted(base, "DoRA")
    Run, write = two_processes.Run, two_processes.write_job
    for net in (ld.MLP(SIZES, rng=9), ld.MLP([7, 30, 9, 5], rng=0)):
        other = Run("A", adapted(net, "DoRA"), adamw(model), 0, 2)
        with pytest.raises(ValueError, match="A adapts a different base from the one given"):
            write(tmp_path, base, data(), [other])
    several = Run("A", model, ld.AdamW(ld.lora_plus(model, 0.01)), 0, 2)
    with pytest.raises(ValueError, match="the optimizer of A has several groups"):
        write(tmp_path, base, data(), [several])
    assert content(tmp_path) == {}
    before = job()
    with pytest.raises(FileExistsError, match="the folder already holds a job"):
        job()
    assert content(tmp_path) == before


def fails(two_processes, folder, before, message, **options):
    """It ends with a clear error, and the folder is as it was."""
    with pytest.raises(RuntimeError, match=message) as caught:
        two_processes.train(folder, **options)
    assert "\n" not in str(caught.value)
    assert "torch_worker.py" not in str(caught.value)  # which would be another process's words
    assert content(folder) == before
    assert not (folder / "there").exists()
    assert not list(folder.glob(".there*"))


def test_a_port_that_is_taken_is_named(two_processes, job, tmp_path):
    before = job()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        message = f"cannot meet at port {port}: Address already in use"
        fails(two_processes, tmp_path, before, message, port=port)


def test_a_port_that_is_taken_meanwhile_is_torchruns_error(
    two_processes, job, tmp_path, monkeypatch
):
    before = job()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(two_processes, "free_port", lambda given: port)
        fails(two_processes, tmp_path, before, "EADDRINUSE|[Aa]ddress already in use")


def test_without_torchrun_the_worker_says_what_is_missing(job, tmp_path):
    before = job()
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MASTER_", "RANK", "WORLD_"))}
    for given, unset in (
        ({}, "RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}, "MASTER_PORT"),
    ):
        ended = subprocess.run(
            [sys.executable, EXAMPLES / "torch_worker.py", tmp_path],
            env=clean | given,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 1
        assert ended.stderr == (
            f"torch_worker.py: error: start it with torchrun: {unset} is not set\n"
        )
    assert content(tmp_path) == before


LINUX = pytest.mark.skipif(
    not Path("/proc/self/cmdline").exists(), reason="reads Linux's list of processes"
)


def workers(folder):
    """Return the processes of a job."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        worker = str(EXAMPLES / "torch_worker.py").encode() in words
        if worker and str(folder).encode() in words and b"torch.distributed.run" not in words:
            found.append(int(process.name))
    return sorted(found)


@LINUX
@pytest.mark.parametrize(("which", "number"), [(0, signal.SIGKILL), (1, signal.SIGTERM)])
def test_a_worker_that_is_killed_is_named(which, number, two_processes, job, tmp_path):
    before = job(steps=20_000)

    def kill():
        while not list(tmp_path.glob(".there-*")):
            time.sleep(0.05)
        os.kill(workers(tmp_path)[which], number)

    killer = threading.Thread(target=kill)
    killer.start()
    fails(
        two_processes, tmp_path, before, rf"a process was killed: Signal {number} \({number.name}\)"
    )
    killer.join()
    assert workers(tmp_path) == []


@LINUX
@pytest.mark.parametrize("killed", ["the launcher", "whoever waits for it"])
def test_nothing_is_left_running(killed, two_processes, job, tmp_path):
    """If torchrun is killed, which cannot end the others then, or this process by SIGTERM."""
    before = job(steps=100_000)  # which take minutes
    code = "import sys; sys.path.insert(0, sys.argv[1]); import pathlib, two_processes; "
    code += "two_processes.train(pathlib.Path(sys.argv[2]))"
    waiting = subprocess.Popen(
        [sys.executable, "-c", code, EXAMPLES, tmp_path], stderr=subprocess.PIPE, text=True
    )
    while not list(tmp_path.glob(".there-*")):
        time.sleep(0.05)
    found = workers(tmp_path)
    if killed == "the launcher":
        parent = re.search(r"PPid:\t(\d+)", Path(f"/proc/{found[0]}/status").read_text())[1]
        os.kill(int(parent), signal.SIGKILL)
    else:
        waiting.terminate()
    _, error = waiting.communicate(timeout=60)
    assert waiting.returncode == (1 if killed == "the launcher" else 128 + signal.SIGTERM), error
    assert content(tmp_path) == before
    assert not list(tmp_path.glob("*there*"))
    assert workers(tmp_path) == []


def test_another_base_is_refused(two_processes, job, tmp_path):
    job()
    ld.save_model(tmp_path / "base.safetensors", ld.MLP(SIZES, rng=9))
    message = r"base\.safetensors is not the file that the job was written for"
    fails(two_processes, tmp_path, content(tmp_path), message)


def test_an_adapter_of_another_shape_is_refused_on_both_sides(two_processes, job, tmp_path):
    job()
    wide = ld.MLP([7, 30, 9, 5], rng=0)
    adapted(wide, "DoRA").save_pretrained(tmp_path / "DoRA")
    fails(two_processes, tmp_path, content(tmp_path), "size mismatch for .*lora_A")
    with pytest.raises(ld.CheckpointError, match=r"has shape \(30, 3\), expected \(12, 3\)"):
        ld.PeftModel.from_pretrained(ld.MLP(SIZES, rng=0), tmp_path / "DoRA")


def test_a_damaged_adapter_is_named(two_processes, job, tmp_path):
    job()
    file = tmp_path / "DoRA" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-20])
    fails(two_processes, tmp_path, content(tmp_path), f"cannot begin {tmp_path}/DoRA: ")


@pytest.fixture
def worker(monkeypatch):
    """The worker as a module, as the first of three processes."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    settings = {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    return __import__("torch_worker")


def test_what_cannot_be_done_is_refused_before_the_processes_meet(
    worker, job, tmp_path, monkeypatch
):
    job()
    told = json.loads((tmp_path / "job.json").read_text())
    assert worker.check(tmp_path) == told
    monkeypatch.setenv("WORLD_SIZE", "3")  # the mean of means is the mean only of parts of one size
    with pytest.raises(ValueError, match="a batch of 16 cannot be split evenly among 3 processes"):
        worker.check(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for start, stop in ((0, 3), (-1, 1), (1, 1)):
        (run,) = told["runs"]
        run |= {"start": start, "stop": stop}
        (tmp_path / "job.json").write_text(json.dumps(told))
        with pytest.raises(ValueError, match=f"DoRA has no steps from {start} to {stop}"):
            worker.check(tmp_path)
    run |= {"start": 0}
    (tmp_path / "job.json").write_text(json.dumps(told))
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="there already exists"):
        worker.check(tmp_path)
    (tmp_path / "data.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"data\.safetensors"):
        worker.check(tmp_path)
    (tmp_path / "job.json").write_text("{")
    with pytest.raises(ValueError, match=r"job\.json is damaged"):
        worker.check(tmp_path)


def test_the_shares_of_a_batch_are_the_batch(worker):
    batch = torch.arange(12)
    for processes in (1, 2, 3):
        shares = [worker.share(batch, rank, processes) for rank in range(processes)]
        assert {len(share) for share in shares} == {12 // processes}
        assert sorted(torch.cat(shares).tolist()) == batch.tolist()


@pytest.mark.parametrize(
    ("printed", "told"),
    [
        ("", "torchrun failed and gave no reason"),
        ("W0101 all is well\nKeyError: 'x'\n=====\n", "KeyError: 'x'"),
        ("[rank1]: a.b.SomeError: no\n  File\n", "a.b.SomeError: no"),
        ("torch_worker.py: error: no\nOtherError: x\n", "no"),
        (
            "torch_worker.py: error: x\nRoot Cause\n Signal 9 (SIGKILL) received by PID 7\n",
            "a process was killed: Signal 9 (SIGKILL) received by PID 7",
        ),
        (
            "Signal 15 (SIGTERM) received by PID 8\nRoot Cause\n exitcode: 1\nE.Error: y",
            "E.Error: y",
        ),
    ],
)
def test_the_cause_is_found_in_what_torchrun_prints(printed, told, two_processes):
    assert two_processes.cause(printed) == told


def test_torchruns_own_variables_are_not_ours(two_processes, monkeypatch):
    monkeypatch.setenv("PET_NNODES", "2")
    monkeypatch.setenv("HOME", "here")
    assert "PET_NNODES" not in two_processes.environment()
    assert two_processes.environment()["HOME"] == "here"


# ----------------------------------------------------------------------------- the lesson


def lesson(*arguments, cwd, before=""):
    """Run the lesson, and before it some code."""
    code = (
        "import runpy, sys; sys.path.insert(0, sys.argv[1].rpartition('/')[0]); sys.argv[:1] = []"
    )
    code += f"; {before}runpy.run_path(sys.argv[0], run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", code, EXAMPLES / "11_outgrow.py", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_lesson_measures_what_it_says(tmp_path):
    ended = lesson("--json", "table.json", "--ranks", "1", "4", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    rows = {row["method"]: row for row in json.loads((tmp_path / "table.json").read_text())}
    assert list(rows) == ["full", "LoRA-1", "DoRA-1", "LoRA-4", "DoRA-4"]
    for row in rows.values():
        assert row["difference"] <= 1e-4 * row["largest"]
        assert row["accuracy_there"] == pytest.approx(row["accuracy_here"], abs=0.002)
        assert row["bytes_per_step"] == 4 * row["trainable"]
    assert (rows["full"]["bytes_per_step"], rows["DoRA-4"]["bytes_per_step"]) == (940_584, 26_568)
    gaps = re.search(r"there and \d here it is (\S+),\n +and (\S+) if", ended.stdout)
    assert float(gaps[1]) < 1e-4 < 0.1 < float(gaps[2])
    for name, formula, measured in re.findall(
        r"(\w+), .* N? +([\d,]+) +([\d,]+)$", ended.stdout, re.M
    ):
        formula, measured = (int(n.replace(",", "")) for n in (formula, measured))
        assert formula <= measured <= 1.12 * formula, name


def test_without_pytorch_the_lesson_says_how_to_get_it_and_what_it_shows(tmp_path):
    absent = "import importlib.util as u; find = u.find_spec; "
    absent += "u.find_spec = lambda name, *more: None if name == 'torch' else find(name, *more); "
    ended = lesson(cwd=tmp_path, before=absent)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "To measure this, install torch\n" in ended.stdout
    assert "(extra 'interop'): pip install torch peft" in ended.stdout
    assert re.search(r"DoRA-4 +6,642 +26,568", ended.stdout)
    assert re.search(r"DoRA, activations, 4 N +3,344,000", ended.stdout)
    for option in ("--json", "--out"):
        ended = lesson(option, "there", cwd=tmp_path, before=absent)
        assert ended.returncode == 2
        assert "error: --json, --out and --port need torch" in ended.stderr
        assert not (tmp_path / "there").exists()


def test_the_lesson_keeps_its_files_and_refuses_to_write_over_them(tmp_path):
    short = ["--ranks", "1", "--steps", "3", "--out", "kept"]
    assert lesson(*short, cwd=tmp_path).returncode == 0
    kept = content(tmp_path / "kept")
    assert Path("there/DoRA-1/adapter_model.safetensors") in kept
    ended = lesson(*short, cwd=tmp_path)
    assert ended.returncode == 2
    assert re.fullmatch(r".*error: argument --out: kept is not empty\n", ended.stderr)
    assert content(tmp_path / "kept") == kept


def test_a_training_that_fails_ends_the_lesson_in_a_line(tmp_path, monkeypatch):
    (tmp_path / "peft.py").write_text("raise ImportError('it is broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    ended = lesson("--ranks", "1", "--steps", "3", cwd=tmp_path)
    assert ended.returncode == 1
    # both processes write at a time
    message = (
        r"11_outgrow\.py: error: training in PyTorch failed: .*ImportError: .*it is broken.*\n"
    )
    assert re.fullmatch(message, ended.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["peft.py"]


def test_a_port_that_is_taken_is_refused_before_the_work(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        ended = lesson("--port", port, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert (
        f"argument --port: the processes cannot meet at port {port}: Address already"
        in ended.stderr
    )
