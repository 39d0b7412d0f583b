"""What a terminal can show, and how a script behaves in one.

Each script here calls ``prepare`` before its slow imports, because somebody may press Ctrl-C during
these.  In a notebook it does nothing: Jupyter handles all of this itself.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import io
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TextIO


def in_notebook() -> bool:
    """Whether this runs in a cell: in a kernel, but not as a script started by ``%run``."""
    kernels = "ipykernel_launcher", "colab_kernel_launcher", "__main__"  # as in python -m ipykernel
    return "ipykernel" in sys.modules and Path(sys.argv[0]).stem in kernels


def prepare() -> None:
    """Make this script end as other commands do, whatever reads its output.

    A character that the console does not have is printed as a question mark.  When the reader has seen
    enough, as in ``| head -1``, the script ends without a word.  Ctrl-C ends it with one line, and with
    the status 130 in a shell.  Both are exceptions first, so that files are closed and cleaned up.
    """
    if in_notebook():
        return
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by >&-; print() would write to the other one
            setattr(sys, name, io.StringIO())
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # stderr escapes such characters by itself
    sys.excepthook = _say_why
    if hasattr(signal, "SIGPIPE"):  # not on Windows
        atexit.register(_leave)  # registered first, so called last


def _say_why(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Show a traceback only for errors that a programmer can fix, and one line for the others.

    After Ctrl-C, Python ends by that signal, as a shell expects.
    """
    if issubclass(kind, KeyboardInterrupt):
        say("\rInterrupted." if sys.stderr.isatty() else "Interrupted.")  # over the ^C
    elif issubclass(kind, OSError) or isinstance(error.__cause__, OSError):
        if not issubclass(kind, BrokenPipeError):
            say(f"{Path(sys.argv[0]).name}: error: {error}")
    else:
        sys.__excepthook__(kind, error, trace)


def _leave() -> None:
    """End by SIGPIPE, as other commands do, if there is more to print and nobody to read it."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # for what is printed but not yet written
    if isinstance(getattr(sys, "last_value", None), BrokenPipeError):  # which nobody has caught
        signal.raise_signal(signal.SIGPIPE)


def say(text: str, end: str = "\n") -> None:
    """Print on stderr, and go on even if nobody can read it."""
    with contextlib.suppress(OSError):
        print(text, end=end, file=sys.stderr, flush=True)


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Let Ctrl-C wait until the block is done.  An error in the block is raised as usual.

    Where Ctrl-C is ignored, as in a background job of a script, it stays so.
    """
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed and before is not signal.SIG_IGN:
        raise KeyboardInterrupt


def can_rewrite(stream: TextIO) -> bool:
    """Whether a line can be overwritten: on a terminal, unless its user asks for plain text."""
    plain = os.environ.get("TERM") == "dumb" or os.environ.get("NO_COLOR")
    return stream.isatty() and not plain


def width(stream: TextIO) -> int:
    """Return how many columns the terminal behind a stream has: 80 if it does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


class Parser(argparse.ArgumentParser):
    """A parser of a script's options that says in one line what is wrong with them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._expected: dict[Path, str] = {}  # each file, and which option uses it
        self._undo = contextlib.ExitStack()

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the options; in a notebook the defaults, because the arguments there are Jupyter's."""
        if args is None and in_notebook():
            args = []
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """End with one line, without the usage; remove the directories made so far."""
        with contextlib.suppress(OSError):  # somebody may have put a file there
            self._undo.close()
        self.exit(2, f"{self.prog}: error: {message}\n")

    def expect_directory(self, option: str, directory: Path) -> None:
        """Make a directory and its parents; end if no file can be written into it."""
        with self._refusing(option, f"{directory} as a directory"):
            self._make(directory)
            tempfile.TemporaryFile(dir=directory).close()

    def expect_file(self, option: str, file: Path) -> None:
        """End now, and not after the work, if a file cannot be written.  Its content stays.

        A file that another option uses is refused, too.  Its directory is made, but not the directories
        above that: these may be misspelt.
        """
        with self._refusing(option, str(file)):
            target = Path(os.path.realpath(file))
            if target in self._expected:
                raise FileExistsError(0, self._expected[target])
            with contextlib.suppress(FileNotFoundError):
                target.stat()  # fails for impossible paths: a loop of links, too long a name
            # not a pipe: its reader would see it opened and closed
            if target.is_file() or target.is_dir():
                target.open("ab").close()
            elif not target.exists():
                if target.parent.parent.exists():
                    self._make(target.parent)
                tempfile.TemporaryFile(dir=target.parent).close()
            self._expected[target] = f"{option} writes there"

    def keep(self, option: str, file: Path) -> None:
        """Let no other option write to a file that this one reads."""
        self._expected[Path(os.path.realpath(file))] = f"{option} reads it"

    def _make(self, directory: Path) -> None:
        if not directory.exists():
            self._make(directory.parent)
            directory.mkdir()
            self._undo.callback(directory.rmdir)

    @contextlib.contextmanager
    def _refusing(self, option: str, target: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error(f"argument {option}: cannot use {target}: {error.strerror}")


def positive(text: str) -> int:
    """Return a whole number from 1 to 999,999,999."""
    number = natural(text, least=1)
    if number > 999_999_999:
        raise argparse.ArgumentTypeError(f"expected at most 999,999,999, not {text[:20]}...")
    return number


def natural(text: str, least: int = 0) -> int:
    """Return a whole number of at least ``least``."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number, at least {least}, not {text!r}")
    return int(text)


def begin(text: str | None) -> Parser:
    """Prepare the terminal for a script, and return the parser of its options.

    The help opens with the first line of ``text``, without the ``#`` of a heading.  With ``python -OO``
    there is no text.
    """
    prepare()
    return Parser(description=text and text.strip("# \n").splitlines()[0])
