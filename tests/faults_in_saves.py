"""Let saves fail, be interrupted, be killed or meet other saves, and check what is left on the disk.

    python tests/faults_in_saves.py
    python tests/faults_in_saves.py kills --kills 1000

First, the calls that a save makes to the operating system are counted.  Then the save is repeated for
every call k, with one of these at that call:

- the call fails, or Ctrl-C comes just before it or just after it;
- the same, and a second fault while the save cleans up;
- the process is killed.

Processes that save in a loop are also killed at random moments, one alone and two in the same folder.
Two threads save into one folder, and a signal handler saves in the middle of a save.

What can be loaded afterwards must always be the old or the new, whole.  Its outputs tell which it is.
Nothing else may be left behind, and the next save must succeed.  After a kill, something may be left,
which the next save removes.  A folder may even hold files of two saves, but then loading must say so.
"""

import argparse
import builtins
import collections
import contextlib
import dataclasses
import errno
import functools
import importlib.util
import io
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
from fuzz_adapter_files import Net, X, trained
from hostile_files import CONFIG

import loradora as ld

#: What loading must say of a folder with files of two saves.
MIXED = "not the one saved with"
TEMPORARY = ".saving-*"


@functools.cache
def adapted(kind, seed=1):
    """Return a model with an adapter of this kind, or with two of them."""
    options = {"use_dora": kind == "DoRA"}
    options |= {"init_lora_weights": "pissa"} if kind == "PiSSA" else {}
    model = trained(**options)
    if kind == "two":
        model.add_adapter(
            "other", ld.LoraConfig(r=1, target_modules=["0"], lora_alpha=seed), rng=seed
        )
    rng = np.random.default_rng(seed)
    for name in model.peft_config:
        model.set_adapter(name)
        for p in model.trainable_parameters():
            p.data = rng.normal(size=p.shape).astype(p.dtype)
    return model


@functools.cache
def plain(seed):
    rng, net = np.random.default_rng(seed), Net()
    for p in net.parameters():
        p.data = rng.normal(size=p.shape).astype(p.dtype)
    return net


# ----------------------------------------------------------------------------- what is saved


def of_adapter(source):
    return ld.PeftModel.from_pretrained(Net(), source)(X).data.tobytes()


def of_model(file):
    net = Net()
    ld.load_model(file, net)
    return net(X).data.tobytes()


def of_config(folder):
    return repr(ld.LoraConfig.from_pretrained(folder)).encode()


@dataclasses.dataclass
class Scenario:
    """What is there, what is saved over it, and how each part of it is read: by its path."""

    old: Callable[[Path], None]
    new: Callable[[Path], None]
    read: dict[str, Callable[[Path], bytes]]
    known: dict = dataclasses.field(default_factory=dict)


def nothing(root):
    pass


def folder_of(kind, seed=1, place="folder"):
    return lambda root: adapted(kind, seed).save_pretrained(root / place)


def folder_of_links(root):
    """Save a folder whose config is a link to a file elsewhere."""
    folder_of("LoRA")(root)
    (root / "folder" / CONFIG).rename(root / "elsewhere.json")
    (root / "folder" / CONFIG).symlink_to(root.parent / "here" / "elsewhere.json")


def file_of(kind, seed=1):
    return lambda root: adapted(kind, seed).save_adapter(root / "a.npz")


def model_of(seed, suffix):
    return lambda root: ld.save_model(root / f"net{suffix}", plain(seed))


def config_of(r, place="folder"):
    config = ld.LoraConfig(r=r, target_modules=["0"])
    return lambda root: config.save_pretrained(root / place)


FOLDER = {"folder": of_adapter}
SCENARIOS = {
    "an adapter": Scenario(file_of("LoRA"), file_of("DoRA"), {"a.npz": of_adapter}),
    "a new adapter": Scenario(nothing, file_of("DoRA"), {"a.npz": of_adapter}),
    "a model": Scenario(model_of(1, ".npz"), model_of(2, ".npz"), {"net.npz": of_model}),
    "a config": Scenario(config_of(2), config_of(3), {"folder": of_config}),
    "a new config": Scenario(nothing, config_of(3, "new/deep"), {"new/deep": of_config}),
}
if importlib.util.find_spec("safetensors"):
    SCENARIOS |= {
        "a safetensors model": Scenario(
            model_of(1, ".safetensors"), model_of(2, ".safetensors"), {"net.safetensors": of_model}
        ),
        "a folder": Scenario(folder_of("LoRA"), folder_of("DoRA"), FOLDER),
        "a folder of the same kind": Scenario(folder_of("LoRA"), folder_of("LoRA", 2), FOLDER),
        "a folder of PiSSA": Scenario(folder_of("PiSSA"), folder_of("LoRA"), FOLDER),
        "a folder of links": Scenario(folder_of_links, folder_of("DoRA"), FOLDER),
        "a new folder": Scenario(
            nothing, folder_of("DoRA", place="new/deep"), {"new/deep": of_adapter}
        ),
        "two adapters": Scenario(
            folder_of("two"), folder_of("two", 2), FOLDER | {"folder/other": of_adapter}
        ),
        "two adapters over one": Scenario(
            folder_of("DoRA"), folder_of("two", 2), FOLDER | {"folder/other": of_adapter}
        ),
    }


class Refusal(str):
    """What loading says of a part that is there and cannot be loaded."""


def state(root, scenario):
    """Return what each part computes; None for one that is not there."""
    found = {}
    for path, read in scenario.read.items():
        try:
            found[path] = read(root / path) if (root / path).exists() else None
        except ld.CheckpointError as error:
            found[path] = Refusal(error)
    return found


def whole(root, scenario):
    """Return the names of all that is there, except temporary files, and what the parts compute."""
    inside = {p for home in root.rglob(TEMPORARY) for p in (home, *home.rglob("*"))}
    paths = sorted(p for p in root.rglob("*") if p not in inside)
    names = [f"{p.relative_to(root)}{' (a link)' * p.is_symlink()}" for p in paths]
    key = tuple((n, p.read_bytes() if p.is_file() else b"") for n, p in zip(names, paths))
    if key not in scenario.known:  # loading takes longer than a save
        scenario.known[key] = state(root, scenario)
    return names, scenario.known[key]


class Ground:
    """A folder in which one scenario is played over and over."""

    def __init__(self, folder, name):
        self.name, self.scenario = name, SCENARIOS[name]
        self.root, self._template = folder / "here", folder / "template"
        for path in (self.root, self._template):
            shutil.rmtree(path, ignore_errors=True)
        self._template.mkdir()
        self.scenario.old(self._template)
        self.restart()
        self.before = whole(self.root, self.scenario)
        with Faults() as faults:
            self.scenario.new(self.root)
        self.calls = faults.calls
        self.after = whole(self.root, self.scenario)
        assert self.before != self.after
        assert not any(isinstance(part, Refusal) for part in self.after[1].values())
        files = [p for p in self._template.rglob("*") if p.is_file() and not p.is_symlink()]
        self.old_files = {p.read_bytes() for p in files}

    def restart(self):
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self._template, self.root, symlinks=True)

    def left(self):
        return list(self.root.rglob(TEMPORARY))

    def check_next_save(self):
        """Raise unless the next save succeeds and removes what was left."""
        self.scenario.new(self.root)
        assert whole(self.root, self.scenario) == self.after
        assert not self.left(), f"the next save does not sweep {self.left()}"


# ----------------------------------------------------------------------------- faults

#: What a save can ask of the operating system.
SYSTEM = """
access chmod close closerange copy_file_range fchmod fdatasync fdopen fstat fsync ftruncate getcwd link
listdir lseek lstat mkdir open posix_fallocate pread pwrite read readlink remove removedirs rename renames
replace rmdir scandir sendfile stat statvfs symlink sync truncate unlink utime write writev
"""

REAL = {name: getattr(os, name) for name in SYSTEM.split() if hasattr(os, name)}
#: Of that, what removes something, or finds out what is to be removed.
REMOVAL = "os.listdir", "os.scandir", "os.unlink", "os.rmdir"
FAILS, BEFORE, AFTER = "fails", "interrupted before", "interrupted after"
KILLED_BEFORE, KILLED_AFTER = "killed before", "killed after"


class Faults:
    """Inside the ``with``, counts what this thread asks of the system, and spoils some of it.

    ``spoiled`` says what happens at which call.  A file is closed even if its ``close`` fails,
    and nothing stays open here because a result was lost.
    """

    def __init__(self, spoiled=None, number=errno.EIO):
        self.spoiled, self.number = spoiled or {}, number
        self.calls = []
        self.removing = False  # whether something may be left, because its removal was spoiled
        self._thread = threading.get_ident()
        self._patches = contextlib.ExitStack()

    def __enter__(self):
        for name, function in REAL.items():
            self._patch(os, name, functools.partial(self.call, f"os.{name}", function))
        if importlib.util.find_spec("fcntl"):
            import fcntl

            self._patch(fcntl, "flock", functools.partial(self.call, "flock", fcntl.flock))
        opened = functools.partial(self._open, io.open)
        self._patch(io, "open", opened)
        self._patch(builtins, "open", opened)
        return self

    def __exit__(self, *_):
        self._patches.close()

    def _patch(self, module, name, function):
        self._patches.enter_context(mock.patch.object(module, name, function))

    def call(self, name, function, *args, **options):
        """Call a function of the system, or what happens in its place."""
        way = None
        if threading.get_ident() == self._thread:
            way = self.spoiled.get(len(self.calls))
            self.calls.append(name)
        if way is None:
            return function(*args, **options)
        in_rmtree = any("rmtree" in frame.name for frame in traceback.extract_stack())
        self.removing |= in_rmtree or name in REMOVAL
        closed = name == "close" or (name == "os.close" and way == FAILS)
        if closed or way in (AFTER, KILLED_AFTER):
            with contextlib.suppress(OSError):
                close(function(*args, **options))
        if way == FAILS:
            raise OSError(self.number, os.strerror(self.number), *args[:1])
        if way in (KILLED_BEFORE, KILLED_AFTER):
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyboardInterrupt

    def _open(self, function, file, mode="r", *args, **options):
        if "b" not in mode or threading.get_ident() != self._thread:
            return function(file, mode, *args, **options)
        faults = self

        class Raw(io.FileIO):
            def write(self, data):
                return faults.call("write", super().write, data)

            def readall(self):
                return faults.call("read", super().readall)

            def readinto(self, buffer):
                return faults.call("read", super().readinto, buffer)

            def close(self):
                if not self.closed:
                    faults.call("close", super().close)

        raw = self.call("open", Raw, file, mode.replace("b", ""), opener=options.get("opener"))
        return io.BufferedReader(raw) if "r" in mode else io.BufferedWriter(raw)


def close(result):
    """Close what a call has opened."""
    if isinstance(result, int) and not isinstance(result, bool) and result > 2:
        with contextlib.suppress(OSError):
            REAL["close"](result)
    elif hasattr(result, "close"):
        with contextlib.suppress(OSError):
            result.close()


def spoil(ground, spoiled, **options):
    """Save with faults; return them and the error."""
    ground.restart()
    with Faults(spoiled, **options) as faults:
        try:
            ground.scenario.new(ground.root)
        except (Exception, KeyboardInterrupt) as error:
            return faults, error
    return faults, None


def check_error(way, error, found, ground):
    """Raise unless the error is the one documented."""
    if way != FAILS:
        assert isinstance(error, KeyboardInterrupt), f"ends in {error!r}"
    elif error is None:
        assert found == ground.after, "it says that it succeeded"
    else:
        assert isinstance(error, ld.CheckpointError), f"ends in {error!r}"
        causes = chain(error)
        assert any(isinstance(cause, OSError) for cause in causes), f"does not say why: {causes}"


def chain(error):
    """Return an error and those that it came from."""
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def try_fault(ground, k, way, **options):
    """Save with a fault at call k; return whether the old or the new is there then, or raise."""
    faults, error = spoil(ground, {k: way}, **options)
    with told(f"{ground.name}: call {k}, {ground.calls[k]}, {way}", error):
        found = whole(ground.root, ground.scenario)
        assert found in (ground.before, ground.after), f"found {found}"
        check_error(way, error, found, ground)
        assert faults.removing or not ground.left(), f"leaves {ground.left()}"
        ground.check_next_save()
    return "old" if found == ground.before else "new"


def try_two_faults(ground, k, second, ways):
    """Save with a fault at k and another one at ``second``; return what is there then."""
    faults, error = spoil(ground, {k: ways[0], second: ways[1]})
    calls = [faults.calls[i] if i < len(faults.calls) else "none" for i in (k, second)]
    with told(f"{ground.name}: calls {k}, {second}: {calls}, {ways}", error):
        found = whole(ground.root, ground.scenario)
        if found not in (ground.before, ground.after):
            check_parts(found[1], ground, "")
            check_rescued(ground, error, named=ways[1] == FAILS)
        assert isinstance(error, (ld.CheckpointError, KeyboardInterrupt)) or found == ground.after
        ground.scenario.new(ground.root)
        assert whole(ground.root, ground.scenario) == ground.after
    if found in (ground.before, ground.after):
        return "old" if found == ground.before else "new"
    return "rescued"


def check_parts(found, ground, message):
    """Raise if a part is neither the old, nor the new, nor refused, by this message if it is not new."""
    for path, part in found.items():
        old, new = ground.before[1][path], ground.after[1][path]
        refused = isinstance(part, Refusal) and (old is None or message in part)
        assert refused or part in (old, new), f"{path} is neither old nor new: {part!r}"


def check_rescued(ground, error, named):
    """Raise unless every old file is still there, in its place or where the message says."""
    text = " ".join(str(cause) for cause in chain(error))
    kept = {p.read_bytes(): home for home in ground.left() for p in home.iterdir()}
    paths = [p for p in ground.root.rglob("*") if p.is_file() and p.parent not in kept.values()]
    for content in ground.old_files - {p.read_bytes() for p in paths}:
        assert content in kept, "an old file is gone for good"
        assert not named or str(kept[content]) in text, f"does not name {kept[content]}"


@contextlib.contextmanager
def told(what, error=None):
    """Say in an AssertionError during which fault it was."""
    try:
        yield
    except AssertionError as failure:
        raise AssertionError(f"{what}: {failure}") from error


def single_faults(folder, names=SCENARIOS, ways=(FAILS, BEFORE, AFTER), **options):
    """Return how often each (scenario, fault, outcome) occurred, for every call of every save."""
    counts = collections.Counter()
    for name in names:
        ground = Ground(folder, name)
        for k in range(len(ground.calls)):
            for way in ways:
                counts[name, way, try_fault(ground, k, way, **options)] += 1
    return counts


def moves(call):
    """Whether a file is in another place after this call of the system."""
    return call in ("os.replace", "os.rename", "os.link")


def second_faults(folder, names=SCENARIOS, ways=(FAILS, AFTER)):
    """Return how often each (scenario, faults, outcome) occurred, for two faults in one save.

    The first one is at a call that moves a file, the second one at any call behind it.
    """
    counts = collections.Counter()
    for name in names:
        ground = Ground(folder, name)
        for k in [k for k, call in enumerate(ground.calls) if moves(call)]:
            for way in ways:
                met, _ = spoil(ground, {k: way})
                for second in range(k + 1, len(met.calls)):
                    for again in ways:
                        result = try_two_faults(ground, k, second, (way, again))
                        counts[name, f"{way}, then {again}", result] += 1
    return counts


# ----------------------------------------------------------------------------- kills


def in_a_child(work):
    """Run ``work`` in a copy of this process; return its id."""
    child = os.fork()
    if child:
        return child
    try:
        signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # also in the background of a shell
        work()
    except KeyboardInterrupt:
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def ended(child, how=None):
    """Wait for a child, or end it by this signal; return the one that ended it, or 0.

    It is sent again to a child that goes on: Python swallows a Ctrl-C that comes while it destroys
    something.  Raises if the child failed by itself.
    """
    done = 0
    while not done:
        if how:
            os.kill(child, how)
        patience = time.perf_counter() + 0.5
        while not done and (time.perf_counter() < patience or not how):
            done, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.0005)
    code = os.waitstatus_to_exitcode(status)
    assert code <= 0, "a save failed, see above"
    return -code


def check_killed(ground):
    """Raise unless a killed save left the old, the new or a mix that is refused; return which."""
    _, found = whole(ground.root, ground.scenario)
    check_parts(found, ground, MIXED)
    ground.check_next_save()
    if any(isinstance(part, Refusal) for part in found.values()):
        return "refused"
    known = {"old": ground.before[1], "new": ground.after[1]}
    return next((name for name, parts in known.items() if parts == found), "one of two")


def try_kill(ground, k, way):
    """Kill a process at a call of its save; return what is there then, or raise."""
    ground.restart()

    def save():
        with Faults({k: way}):
            ground.scenario.new(ground.root)

    with told(f"{ground.name}: call {k}, {ground.calls[k]}, {way}"):
        assert ended(in_a_child(save)) == signal.SIGKILL
        return check_killed(ground)


def kills_at_calls(folder, names=SCENARIOS):
    """Return how often each (scenario, kill, outcome) occurred, for every call of every save."""
    counts = collections.Counter()
    for name in names:
        ground = Ground(folder, name)
        for k in range(len(ground.calls)):
            for way in (KILLED_BEFORE, KILLED_AFTER):
                counts[name, way, try_kill(ground, k, way)] += 1
    return counts


def saves_without_end(root, kinds):
    parent = os.getppid()
    while os.getppid() == parent:  # it may have failed, and nobody else needs this
        for kind in kinds:
            adapted(kind).save_pretrained(root)


def outcomes(kinds, folder):
    """Return what the adapters of these kinds compute: what may be loaded from where they are saved."""
    found = {}
    for kind in kinds:
        adapted(kind).save_pretrained(folder / kind)
        found[of_adapter(folder / kind)] = kind
    return found


def loaded(root, known):
    """Return the kind of the adapter in a folder, or "refused" if it says that it is a mix."""
    try:
        return known[of_adapter(root)]
    except ld.CheckpointError as error:
        if MIXED not in str(error):
            raise AssertionError(f"refused for another reason: {error}") from error
        return "refused"


def kills_at_random(folder, count, seed=0, savers=(["PiSSA", "LoRA"], ["DoRA", "LoRA"])):
    """Return how often each (event, outcome) occurred where processes that save are killed.

    One process saves an adapter of two kinds in turn, or two processes do.  Beside them the folder is
    loaded.  Every second time they are not killed, but interrupted as by Ctrl-C, after which nothing is
    mixed.
    """
    known = outcomes({kind for kinds in savers for kind in kinds}, folder)
    rng, counts, root = np.random.default_rng(seed), collections.Counter(), folder / "killed"
    adapted("LoRA").save_pretrained(root)
    start = time.perf_counter()
    adapted("LoRA").save_pretrained(root)
    once = time.perf_counter() - start
    for i in range(count):
        how = (signal.SIGKILL, signal.SIGINT)[i // 2 % 2]
        working = savers[: 1 + i % 2]
        children = [in_a_child(lambda k=k: saves_without_end(root, k)) for k in working]
        event = f"{len(children)} saving, then {how.name}"
        until = time.perf_counter() + once * rng.uniform(1, 20)
        while time.perf_counter() < until:
            counts["beside " + event.partition(",")[0], loaded(root, known)] += 1
        for child in children:
            assert ended(child, how) in (0, how)
        result = loaded(root, known)
        assert result != "refused" or how == signal.SIGKILL, "Ctrl-C leaves a mix"
        counts[event, result] += 1
        adapted("LoRA").save_pretrained(root)
        assert loaded(root, known) == "LoRA"
        assert not list(root.glob(TEMPORARY)), f"the next save does not sweep {os.listdir(root)}"
    return counts


# ----------------------------------------------------------------------------- beside one another


def threads(folder, seconds, kinds=("LoRA", "PiSSA", "DoRA")):
    """Return how often what was loaded beside threads that save, each an adapter of another kind."""
    known, root = outcomes(kinds, folder), folder / "shared"
    adapted(kinds[0]).save_pretrained(root)
    counts, failures, until = collections.Counter(), [], time.perf_counter() + seconds

    def save(kind):
        try:
            while time.perf_counter() < until:
                adapted(kind).save_pretrained(root)
                counts["saved", kind] += 1
        except Exception as error:
            failures.append(error)

    working = [threading.Thread(target=save, args=[kind]) for kind in kinds]
    for thread in working:
        thread.start()
    while any(thread.is_alive() for thread in working):
        counts["loaded beside threads", loaded(root, known)] += 1
    for thread in working:
        thread.join()
    if failures:
        raise AssertionError(f"a save failed: {failures[0]!r}") from failures[0]
    result = loaded(root, known)
    assert result in kinds, "the folder is a mix in the end"
    assert not list(root.glob(TEMPORARY)), f"they leave {os.listdir(root)}"
    return counts + collections.Counter({("there after threads", result): 1})


def signals(folder, seconds, kinds=("LoRA", "PiSSA")):
    """Return how often a handler saved in the middle of a save, and what was there afterwards."""
    known, root = outcomes(kinds, folder), folder / "signalled"
    counts, until = collections.Counter(), time.perf_counter() + seconds
    rng = np.random.default_rng(0)
    saving = False

    def save_too(*_):
        adapted(kinds[1]).save_pretrained(root)
        counts["saved in a handler", "in a save" if saving else "between"] += 1

    before = signal.signal(signal.SIGALRM, save_too)
    try:
        while time.perf_counter() < until:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(0, 0.006) + 1e-6)
            saving = True
            adapted(kinds[0]).save_pretrained(root)
            saving = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            result = loaded(root, known)
            assert result != "refused", "the folder is a mix"
            assert not list(root.glob(TEMPORARY)), f"they leave {os.listdir(root)}"
            counts["there after a handler", result] += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return counts


# ----------------------------------------------------------------------------- the long run


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    runs = {
        "faults": lambda folder, args: single_faults(folder, args.only),
        "pairs": lambda folder, args: second_faults(folder, args.only),
        "calls": lambda folder, args: kills_at_calls(folder, args.only),
        "kills": lambda folder, args: kills_at_random(folder, args.kills, args.seed),
        "threads": lambda folder, args: threads(folder, args.seconds),
        "signals": lambda folder, args: signals(folder, args.seconds),
    }
    parser.add_argument("what", nargs="*", help=f"of {', '.join(runs)}; all by default")
    parser.add_argument(
        "--only",
        action="append",
        choices=SCENARIOS,
        help="this kind of save alone (faults, pairs, calls)",
    )
    parser.add_argument(
        "--kills", type=int, default=1000, help="processes to kill at random moments (1000)"
    )
    parser.add_argument(
        "--seconds", type=float, default=60, help="how long threads and signals run (60 each)"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not runs.keys() >= set(args.what):
        parser.error(f"expected some of {', '.join(runs)}, not {' '.join(args.what)}")
    args.only = args.only or SCENARIOS
    for what in args.what or runs:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            counts = runs[what](Path(folder), args)
        print(f"{what}, {time.perf_counter() - start:.0f} s")
        for words, n in sorted(counts.items()):
            print(f"  {', '.join(words):70} {n:7,}")
        sys.stdout.flush()  # before a child copies it


if __name__ == "__main__":
    main()
