"""examples/terminal.py: a script ends quietly, prints on any console, and refuses before it works."""

import importlib
import os
import signal
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from test_examples import CONSOLE

EXAMPLES = Path(__file__).parents[1] / "examples"

#: Makes the terminal on stdin the one whose Ctrl-C it gets, and becomes the command.
TAKE_TERMINAL = """if True:
    import fcntl, os, signal, sys, termios
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # it is ignored in a shell's background jobs
    os.execv(sys.argv[1], sys.argv[1:])"""


def on_a_terminal(*command, columns=80, stop_at=None, env=()):
    """Run Python on a terminal; return what it shows, and its status.

    Ctrl-C is pressed when it has shown ``stop_at``.
    """
    fcntl, pty, termios = map(pytest.importorskip, ("fcntl", "pty", "termios"))
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", TAKE_TERMINAL, sys.executable, *map(str, command)],
        env={**os.environ, **CONSOLE, "TERM": "xterm", **dict(env)},
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
    )
    os.close(its)
    shown = b""
    while part := read(ours):
        shown += part
        if stop_at and stop_at.encode() in shown:
            os.write(ours, b"\x03")
            stop_at = None
    os.close(ours)
    return shown.decode("ascii"), process.wait()


def read(terminal):
    """Return the next output, and nothing when no process is attached any more."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


def script(body):
    """Return what runs a script that prepares and then does ``body``."""
    examples = f"os.fsdecode({os.fsencode(EXAMPLES)!r})"  # which may have any letters
    lines = ["import os, sys", f"sys.path.insert(0, {examples})", "import terminal"]
    return ["-c", "\n".join([*lines, "terminal.prepare()", body])]


def run(body, shell="", **env):
    """Run a script in a shell that does ``shell`` with its output."""
    line = f'{sys.executable} "$@" {shell}'
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}", "bash", *script(body)],
        env={**os.environ, **CONSOLE, "PYTHONUNBUFFERED": "", **env},
        capture_output=True,
        text=True,
        encoding="ascii",
    )


# -- the streams


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_console_without_a_character_shows_a_question_mark(encoding):
    done = run(r"print('a \u2192 b')", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a ? b\n", "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("body", ["print('one')", "print('one', *range(99999), sep=chr(10))"])
def test_a_reader_that_has_seen_enough_ends_a_script_quietly(body, unbuffered):
    done = run(f"import time; time.sleep(0.2); {body}; time.sleep(0.2); print('two')", "| true",
               PYTHONUNBUFFERED=unbuffered)  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "")
    assert done.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_script_without_a_reader_cleans_up(tmp_path, unbuffered):
    body = """
import tempfile, time
folder = tempfile.TemporaryDirectory()
time.sleep(0.2)
print('one', flush=True)"""
    done = run(body, "| true", PYTHONUNBUFFERED=unbuffered, TMPDIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shell", ["2> >(true)", "2> /dev/full"])
def test_what_is_said_on_stderr_may_be_lost(shell):
    body = "import time; time.sleep(0.2); terminal.say('one'); terminal.say('two'); print('done')"
    done = run(body, shell)
    assert (done.stdout, done.stderr) == ("done\n", "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_finds_no_room_is_told_without_a_traceback(unbuffered):
    done = run("print('one')", "> /dev/full; exit $?", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == (1 if unbuffered else 120)
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_goes_to_a_closed_stream_goes_nowhere():
    body = "print('out'); print('error', file=sys.stderr); sys.stderr.isatty()"
    done = run(body, ">&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "error\n")
    done = run(body, "2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "")


def test_ctrl_c_ends_a_script_in_one_line():
    done = run("import signal; signal.raise_signal(signal.SIGINT)", "; exit $?")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted.\n")
    shown, status = on_a_terminal(
        *script("import time; print('here'); time.sleep(60)"), stop_at="here"
    )
    assert shown.replace("^C", "").split() == ["here", "Interrupted."]
    assert status == -signal.SIGINT


def test_ctrl_c_waits_for_the_end_of_a_block_with_patience():
    body = """
import signal
with terminal.patience():
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    print('done')
print('not reached')"""
    done = run(body, "; exit $?")
    assert (done.returncode, done.stdout, done.stderr) == (130, "done\n", "Interrupted.\n")


def test_where_ctrl_c_is_ignored_patience_ignores_it_too():
    body = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
with terminal.patience():
    signal.raise_signal(signal.SIGINT)
print('done')"""
    done = run(body)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_an_error_in_a_block_with_patience_is_not_hidden_by_ctrl_c():
    body = """
import signal
with terminal.patience():
    signal.raise_signal(signal.SIGINT)
    raise OSError(28, 'No space left on device')"""
    done = run(body, "; exit $?")
    assert (done.returncode, done.stderr) == (1, "-c: error: [Errno 28] No space left on device\n")


def test_after_patience_ctrl_c_is_as_before():
    body = "import signal\nwith terminal.patience(): pass\nprint('out')\nsignal.raise_signal(2)"
    done = run(body, "; exit $?")
    assert (done.returncode, done.stdout, done.stderr) == (130, "out\n", "Interrupted.\n")


def test_another_error_keeps_its_traceback():
    done = run("1 / 0")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert "ZeroDivisionError" in done.stderr


# -- the terminal


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("terminal")


@pytest.mark.parametrize(
    ("env", "rewrites"),
    [({}, True), ({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
    ids=str,
)
def test_a_line_is_rewritten_only_where_it_can_be(env, rewrites):
    body = "print(terminal.can_rewrite(sys.stderr), terminal.width(sys.stderr))"
    env = {"NO_COLOR": "", **env}
    assert on_a_terminal(*script(body), columns=40, env=env)[0].split() == [str(rewrites), "40"]
    assert run(body, **env).stdout.split() == ["False", "80"]


def test_a_terminal_of_unknown_width_has_eighty_columns():
    assert on_a_terminal(*script("print(terminal.width(sys.stderr))"), columns=0)[0].strip() == "80"


#: What a kernel was started as: by Jupyter, by Colab, by hand, by Spyder.
KERNELS = [
    "ipykernel_launcher.py",
    "colab_kernel_launcher.py",
    "ipykernel/__main__.py",
    "spyder_kernels/console/__main__.py",
]


@pytest.fixture(params=KERNELS)
def kernel(request, monkeypatch):
    """The arguments are a kernel's."""
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    monkeypatch.setattr(sys, "argv", [f"/usr/lib/python3/{request.param}", "-f", "kernel.json"])
    return sys.argv


def test_in_a_notebook_nothing_is_changed(terminal, kernel, monkeypatch):
    monkeypatch.setattr(terminal.atexit, "register", pytest.fail)
    before = sys.excepthook, signal.getsignal(signal.SIGPIPE), sys.stdout.errors
    terminal.prepare()
    assert (sys.excepthook, signal.getsignal(signal.SIGPIPE), sys.stdout.errors) == before


# -- the options


@pytest.fixture
def parser(terminal):
    parser = terminal.Parser(prog="lesson.py")
    parser.add_argument("--steps", type=int, default=3)
    return parser


@pytest.mark.parametrize(
    "rest", [["-f", "kernel.json"], ["--f=kernel.json", "--HistoryManager.enabled=False"]], ids=str
)
def test_the_arguments_of_a_kernel_are_not_the_lessons(parser, kernel, rest):
    kernel[1:] = rest
    assert parser.parse_args().steps == 3
    assert parser.parse_args(["--steps", "5"]).steps == 5


def test_a_script_that_a_notebook_runs_has_arguments_of_its_own(parser, kernel):
    kernel[:] = ["lesson.py", "--steps", "5"]
    assert parser.parse_args().steps == 5


def test_a_script_may_be_a_main_of_a_package(parser, monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.setattr(sys, "argv", ["lesson/__main__.py", "--steps", "5"])
    assert parser.parse_args().steps == 5


@pytest.mark.parametrize("mistake", [["-f", "kernel.json"], ["--step", "x"], ["more"]], ids=str)
def test_a_mistake_is_refused_in_one_line(parser, monkeypatch, capsys, mistake):
    monkeypatch.setattr(sys, "argv", ["lesson.py", *mistake])
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args()
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("lesson.py: error: ")
    assert len(error.splitlines()) == 1


def test_a_target_that_can_be_written_stays_as_it_is(parser, tmp_path):
    file, pipe = tmp_path / "file", tmp_path / "pipe"
    file.write_text("kept")
    os.mkfifo(pipe)  # opening it would wait for a reader
    for target in (file, pipe, Path(os.devnull), tmp_path / "absent", tmp_path / "new" / "absent"):
        parser.expect_file("--svg", target)
    parser.expect_directory("--out", tmp_path)
    parser.expect_directory("--out", tmp_path / "far" / "away")
    assert file.read_text() == "kept"
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == [
        "far", "far/away", "file", "new", "pipe",
    ]  # fmt: skip


#: Files that nobody can write, not even root in a container.
UNWRITABLE = {
    "a directory": ".",
    "below a file": "file/graph.svg",
    "in no directory": "no/such/graph.svg",
    "in a file system without new files": "/proc/graph.svg",
    "too long a name": 300 * "x",
}


@pytest.mark.parametrize("target", UNWRITABLE.values(), ids=UNWRITABLE)
def test_a_file_that_cannot_be_written_is_refused(parser, monkeypatch, capsys, tmp_path, target):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("kept")
    with pytest.raises(SystemExit, match="2"):
        parser.expect_file("--svg", Path(target))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lesson.py: error: argument --svg: cannot use {target}: ")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert Path("file").read_text() == "kept"


def test_a_link_is_followed_to_where_the_file_will_be(parser, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, target in {
        "near": "new/graph.svg",
        "far": "no/such/graph.svg",
        "loop": "loop",
    }.items():
        Path(name).symlink_to(target)
    parser.expect_file("--svg", Path("near"))
    Path("near").write_text("drawn")
    for name in ("far", "loop"):
        with pytest.raises(SystemExit, match="2"):
            parser.expect_file("--svg", Path(name))
        assert f"argument --svg: cannot use {name}: " in capsys.readouterr().err


def test_two_options_cannot_have_one_file(parser, capsys, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    parser.expect_file("--svg", tmp_path / "file")
    for name in ("file", "link", "new/../file"):
        with pytest.raises(SystemExit, match="2"):
            parser.expect_file("--json", tmp_path / name)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(f"argument --json: cannot use {tmp_path / name}: --svg writes there")
        (tmp_path / "new").mkdir(exist_ok=True)


def test_a_refusal_leaves_no_directory(parser, tmp_path):
    (tmp_path / "kept").mkdir()
    parser.expect_directory("--out", tmp_path / "far" / "away")
    parser.expect_directory("--out", tmp_path / "kept")
    parser.expect_file("--json", tmp_path / "new" / "rows.json")
    with pytest.raises(SystemExit, match="2"):
        parser.expect_file("--svg", tmp_path / "no" / "such" / "graph.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("target", ["file", "file/below", "/proc/new", 300 * "x"], ids=ascii)
def test_a_directory_that_cannot_be_used_is_refused(parser, monkeypatch, capsys, tmp_path, target):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("kept")
    with pytest.raises(SystemExit, match="2"):
        parser.expect_directory("--out", Path(target))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"lesson.py: error: argument --out: cannot use {target} as a directory: "
    )


@pytest.fixture
def own_folder():
    """A folder of this user.  Root, who may write everything, becomes another user meanwhile."""
    with tempfile.TemporaryDirectory() as name:
        root, nobody = os.geteuid() == 0, 65534
        if root:
            os.chown(name, nobody, nobody)
            os.seteuid(nobody)
        try:
            yield Path(name)
        finally:
            Path(name).chmod(0o755)
            if root:
                os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no rights of this kind on this system")
def test_what_the_user_may_not_write_is_refused(terminal, own_folder):
    file, new, below = (own_folder / name for name in ("file", "new", "below/file"))
    file.write_text("kept")
    parser = terminal.Parser()
    parser.expect_directory("--out", own_folder)
    for target in (file, new):  # which says that it is the rights that they lack below
        parser.expect_file("--svg", target)

    parser = terminal.Parser()
    file.chmod(0o444)
    own_folder.chmod(0o555)
    with pytest.raises(SystemExit, match="2"):
        parser.expect_directory("--out", own_folder)
    for target in (file, new, below):
        with pytest.raises(SystemExit, match="2"):
            parser.expect_file("--svg", target)
    own_folder.chmod(0o000)
    with pytest.raises(SystemExit, match="2"):
        parser.expect_file("--svg", file)
