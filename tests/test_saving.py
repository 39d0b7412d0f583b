"""A save leaves the old or the new, whole, whatever fails, interrupts it or saves at the same time.

The long versions are in ``faults_in_saves.py``.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import faults_in_saves
import numpy as np
import pytest
from faults_in_saves import (
    AFTER,
    BEFORE,
    FAILS,
    MIXED,
    SCENARIOS,
    TEMPORARY,
    Faults,
    Ground,
    adapted,
    config_of,
    of_adapter,
    of_config,
    of_model,
    plain,
    second_faults,
    single_faults,
    threads,
    whole,
)
from fuzz_adapter_files import Net
from hostile_files import CONFIG, WEIGHTS

import loradora as ld
from loradora import CheckpointError

every_scenario = pytest.mark.parametrize("name", SCENARIOS)


@pytest.fixture
def safetensors():
    return pytest.importorskip("safetensors", reason="PEFT's file format needs safetensors")


# ----------------------------------------------------------------------------- faults


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "two adapters"])
def test_a_fault_at_any_call_leaves_the_old_or_the_new(name, tmp_path):
    """Each call of the system fails once, or Ctrl-C comes just before it or just after it."""
    counts = single_faults(tmp_path, [name])
    found = {(way, result) for _, way, result in counts}
    assert found == {(way, result) for way in (FAILS, BEFORE, AFTER) for result in ("old", "new")}


@pytest.mark.parametrize("name", ["a folder", "a folder of the same kind", "a new folder"])
def test_a_way_back_that_fails_too_loses_no_file(name, tmp_path, safetensors):
    counts = second_faults(tmp_path, [name], [FAILS])
    assert counts[name, f"{FAILS}, then {FAILS}", "old"] > 10


def test_a_way_back_that_is_interrupted_loses_no_file(tmp_path, safetensors):
    counts = second_faults(tmp_path, ["a folder"], [AFTER])
    assert counts["a folder", f"{AFTER}, then {AFTER}", "old"] > 10


READERS = {
    "a.npz": (lambda root: adapted("DoRA").save_adapter(root / "a.npz"), of_adapter),
    "folder": (lambda root: adapted("LoRA").save_pretrained(root / "folder"), of_adapter),
    "net.npz": (lambda root: ld.save_model(root / "net.npz", plain(1)), of_model),
    "net.safetensors": (lambda root: ld.save_model(root / "net.safetensors", plain(1)), of_model),
    "config": (config_of(2, "config"), of_config),
}


@pytest.mark.parametrize("name", READERS)
def test_what_the_disk_refuses_to_a_load_is_reported_as_all_else_is(name, tmp_path, safetensors):
    save, read = READERS[name]
    save(tmp_path)
    with Faults() as faults:
        expected = read(tmp_path / name)
    assert faults.calls
    found = []
    for k, call in enumerate(faults.calls):
        found.clear()
        with Faults({k: FAILS}):
            errors = outcomes_of({call: lambda: found.append(read(tmp_path / name))})
        if errors[call] is None:
            assert found == [expected], call
        else:
            refused_with("Input/output error", errors, call)
            assert isinstance(errors[call].__cause__, OSError), call


@pytest.mark.parametrize("way", [FAILS, BEFORE, AFTER])
def test_a_load_that_is_cut_off_leaves_the_model(way, tmp_path):
    adapted("DoRA").save_adapter(tmp_path / "a.npz")
    model = ld.PeftModel.from_pretrained(Net(), tmp_path / "a.npz")
    before = {name: a.tobytes() for name, a in model.state_dict().items()}
    with Faults() as faults:
        model.load_adapter(tmp_path / "a.npz", "another")
    model.delete_adapter("another")
    for k in range(len(faults.calls)):
        with Faults({k: way}), contextlib.suppress(CheckpointError, KeyboardInterrupt):
            model.load_adapter(tmp_path / "a.npz", "another")
            model.delete_adapter("another")
        assert list(model.peft_config) == ["default"]
        assert {name: a.tobytes() for name, a in model.state_dict().items()} == before


# ----------------------------------------------------------------------------- disks and folders


@contextlib.contextmanager
def a_full_disk(free):
    """Let no file grow beyond so many bytes."""
    resource = pytest.importorskip("resource", reason="no limits on this system")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@every_scenario
@pytest.mark.parametrize("free", [0, 300])
def test_a_full_disk_leaves_the_old(name, free, tmp_path):
    ground = Ground(tmp_path, name)
    ground.restart()
    with a_full_disk(free), pytest.raises(CheckpointError, match="File too large") as failure:
        ground.scenario.new(ground.root)
    assert isinstance(failure.value.__cause__, OSError)
    assert whole(ground.root, ground.scenario) == ground.before
    assert not ground.left()


@pytest.fixture
def open_folder():
    """A folder that every user can reach, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def without_privileges():
    """Become a user to whom permissions apply, even if the tests run as root."""
    if not hasattr(os, "seteuid"):
        pytest.skip("no users on this system")
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def every_save(root):
    """Return every way to save, into this folder."""
    return {
        "save_adapter": lambda: adapted("DoRA").save_adapter(root / "a.npz"),
        "save_pretrained": lambda: adapted("DoRA").save_pretrained(root),
        "into a new folder": lambda: adapted("DoRA").save_pretrained(root / "new" / "deep"),
        "two adapters": lambda: adapted("two").save_pretrained(root),
        "save_model": lambda: ld.save_model(root / "net.npz", plain(2)),
        "a config": lambda: config_of(3, "config")(root),
    }


def every_load(root):
    """Return every way to load what :func:`every_save` has saved."""
    return {
        "from_pretrained, .npz": lambda: of_adapter(root / "a.npz"),
        "from_pretrained": lambda: of_adapter(root),
        "load_adapter": lambda: trained_copy().load_adapter(root, "new"),
        "load_model": lambda: of_model(root / "net.npz"),
        "a config, loaded": lambda: of_config(root / "config"),
    }


def trained_copy():
    return ld.get_peft_model(Net(), ld.LoraConfig(target_modules=["0"]))


def outcomes_of(attempts):
    """Return the error of each attempt by name, None where there is none."""
    errors = {}
    for name, attempt in attempts.items():
        try:
            errors[name] = attempt() and None
        except Exception as error:
            errors[name] = error
    return errors


def refused_with(message, errors, name):
    assert isinstance(errors[name], CheckpointError), f"{name}: {errors[name]!r}"
    assert message in str(errors[name]), name


def contents(root):
    return {str(p.relative_to(root)): p.is_file() and p.read_bytes() for p in root.rglob("*")}


def test_a_folder_that_is_read_only_stays_as_it_is(open_folder, safetensors):
    for save in every_save(open_folder).values():  # which imports what is needed, too
        save()
    before = contents(open_folder)
    open_folder.chmod(0o555)
    with without_privileges():
        saves = outcomes_of(every_save(open_folder))
        loads = outcomes_of(every_load(open_folder))
    open_folder.chmod(0o755)
    for name in saves:
        refused_with("Permission denied", saves, name)
    assert set(loads.values()) == {None}
    assert contents(open_folder) == before


def test_a_folder_that_cannot_be_entered_is_reported(open_folder, safetensors):
    closed = open_folder / "closed"
    closed.mkdir()
    for attempt in (*every_save(closed).values(), *every_load(closed).values()):
        attempt()  # which imports what is needed, too
    before = contents(closed)
    closed.chmod(0)
    with without_privileges():
        results = outcomes_of({**every_save(closed), **every_load(closed)})
    closed.chmod(0o755)
    for name in results:
        refused_with("Permission denied", results, name)
    assert contents(closed) == before


LONG = "x" * 300


def a_loop(root):
    (root / "loop").symlink_to(root / "loop")
    return root / "loop"


def a_file(root):
    (root / "file").write_text("mine")
    return root / "file"


IMPOSSIBLE = {
    "a name of 300 letters": lambda root: root / LONG,
    "a path of 6,000 letters": lambda root: root / "/".join(["y" * 200] * 30),
    "a zero in the name": lambda root: root / "a\0b",
    "a lone surrogate": lambda root: root / "a\ud800b",
    "a loop of links": a_loop,
    "a file for a folder": a_file,
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_path_that_cannot_be_is_reported(name, tmp_path, safetensors):
    """As a folder, with files in it, and as the beginning of the name of a file."""
    place = IMPOSSIBLE[name](tmp_path)
    file = place.with_name(place.name + ".npz")
    before = contents(tmp_path)
    attempts = {
        **every_save(place),
        **every_load(place),
        "the file, saved": lambda: adapted("DoRA").save_adapter(file),
        "the model, saved": lambda: ld.save_model(file, plain(1)),
        "the file, loaded": lambda: of_adapter(file),
        "the model, loaded": lambda: of_model(file),
    }
    if name in ("a loop of links", "a file for a folder"):  # beside which there is room
        attempts = {**every_save(place), **every_load(place)}
    errors = outcomes_of(attempts)
    for path in errors:
        refused_with("cannot", errors, path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o077, 0o600, 0o700), (0o022, 0o644, 0o755)])
def test_what_is_saved_is_as_open_to_others_as_the_user_wants(
    mask, file, folder, tmp_path, safetensors
):
    for again in ("new", "replaced"):
        before = os.umask(mask)
        try:
            for save in every_save(tmp_path).values():
                save()
        finally:
            os.umask(before)
        for path in tmp_path.rglob("*"):
            assert path.stat().st_mode & 0o777 == (folder if path.is_dir() else file), again
            if path.is_file() and path.name != "README.md":  # which stays
                path.chmod(0o400)


# ----------------------------------------------------------------------------- what is in the way


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(tmp_path, safetensors):
    (tmp_path / "precious").write_text("mine")
    names = ["a.npz", "net.npz", CONFIG, WEIGHTS]
    for target in ("precious", "nothing"):
        for name in names:
            (tmp_path / name).unlink(missing_ok=True)
            (tmp_path / name).symlink_to(tmp_path / target)
        for save in every_save(tmp_path).values():
            save()
        for name in names:
            assert not (tmp_path / name).is_symlink()
        assert (tmp_path / "precious").read_text() == "mine"
        assert not (tmp_path / "nothing").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path, safetensors):
    for name in ("a.npz", "net.npz", CONFIG, WEIGHTS, "README.md"):
        os.mkfifo(tmp_path / name)
    for save in every_save(tmp_path).values():
        with contextlib.suppress(CheckpointError):
            save()
    assert not list(tmp_path.rglob(TEMPORARY))


def test_what_has_a_temporary_name_and_is_no_folder_of_a_save_stays(tmp_path, safetensors):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / CONFIG).write_text("mine")
    root = tmp_path / "folder"
    root.mkdir()
    (root / ".saving-00000000000000aa").symlink_to(precious)
    (root / ".saving-00000000000000bb").write_text("mine")
    for save in every_save(root).values():
        save()
    assert (root / ".saving-00000000000000aa").is_symlink()
    assert (root / ".saving-00000000000000bb").read_text() == "mine"
    assert contents(precious) == {CONFIG: b"mine"}


def test_the_folder_of_a_save_that_is_alive_is_not_swept(tmp_path, safetensors):
    fcntl = pytest.importorskip("fcntl", reason="no locks on this system")
    home = tmp_path / ".saving-0123456789abcdef"
    home.mkdir()
    (home / WEIGHTS).write_bytes(b"half")
    alive = os.open(home, os.O_RDONLY)
    fcntl.flock(alive, fcntl.LOCK_EX)
    adapted("LoRA").save_pretrained(tmp_path)
    assert contents(home) == {WEIGHTS: b"half"}
    os.close(alive)
    adapted("LoRA").save_pretrained(tmp_path)
    assert not home.exists()


def test_a_link_that_could_not_be_replaced_is_a_link_again(tmp_path, safetensors):
    counts = single_faults(tmp_path, ["a folder of links"], [FAILS])
    assert counts["a folder of links", FAILS, "old"] > 0


# ----------------------------------------------------------------------------- beside one another


def test_threads_that_save_one_folder_do_not_disturb_one_another(tmp_path, safetensors):
    counts = threads(tmp_path, seconds=1)
    saved = {kind: n for (what, kind), n in counts.items() if what == "saved"}
    assert len(saved) == 3
    assert min(saved.values()) > 5


def run(*options):
    """Run the script in a process of its own, which is free to fork, and to handle signals."""
    script = Path(faults_in_saves.__file__)
    root = script.parent.parent
    paths = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, script, *options],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


@forks
@pytest.mark.parametrize("name", ["an adapter", "a folder"])
def test_a_kill_at_any_call_leaves_the_old_or_the_new_or_says_that_they_are_mixed(
    name, safetensors
):
    report = run("calls", "--only", name)
    assert {"old", "new"} <= {line.split()[-2] for line in report.splitlines()[1:]}


@forks
def test_processes_killed_at_random_leave_one_of_what_they_saved(safetensors):
    report = run("kills", "--kills", "24")
    assert "1 saving, then SIGKILL" in report
    assert "2 saving, then SIGKILL" in report
    assert "2 saving, then SIGINT" in report


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on this system")
def test_a_handler_may_save_in_the_middle_of_a_save(safetensors):
    assert "saved in a handler, in a save" in run("signals", "--seconds", "1")


def test_a_mix_of_two_saves_says_so(tmp_path, safetensors):
    """What the tests above accept as refused is refused with this message, and for no other reason."""
    for kind in ("LoRA", "PiSSA"):
        adapted(kind).save_pretrained(tmp_path / kind)
    shutil.copy(tmp_path / "LoRA" / CONFIG, tmp_path / "PiSSA" / CONFIG)
    with pytest.raises(CheckpointError, match=MIXED):
        of_adapter(tmp_path / "PiSSA")
    assert np.frombuffer(of_adapter(tmp_path / "LoRA"), np.float32).size == 4
