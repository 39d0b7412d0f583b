"""The reading edition: the lessons and the code, in reading order, as one HTML page.

Each lesson ends its opening with a paragraph "Read next".  The files named there follow the lesson, so a
reader meets every file when it is needed.  Prose stands beside the code that it is about.  Below the code
of a lesson stands what it prints, because the lessons are really run, which takes two minutes.

The page needs no network and no script.  ``book.css`` is how it looks.

    python examples/book.py                    into out/book.html
    python examples/book.py --run 1 5          run only lessons 1 and 5
    python examples/book.py --run              run none: the page is there in seconds
"""

from __future__ import annotations

import terminal

if __name__ == "__main__":
    terminal.prepare()  # first, because the other imports take a moment

import ast
import contextlib
import html
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

EXAMPLES = Path(__file__).resolve().parent
ROOT = EXAMPLES.parent
LESSONS = sorted(EXAMPLES.glob("[0-9][0-9]_*.py"))

NEEDED = (
    "ipykernel", "jupytext", "latex2mathml", "markdown_it", "mdit_py_plugins", "nbclient", "pygments"
)  # fmt: skip
ADVICE = (
    "(extra 'book'): pip install ipykernel jupytext latex2mathml markdown-it-py mdit-py-plugins "
    "nbclient pygments"
)

TITLE = "LoRA and DoRA, read from the code"
INTRODUCTION = """
These are two small Python packages, written to be read.  `minigrad` differentiates: each operation
stands beside its derivative.  `loradora` fine-tunes networks with it.  LoRA adds to each frozen weight a
product of two thin matrices, and trains only these two.  DoRA also takes each row of the weight apart
into a length and a direction, and trains the lengths separately.

The lessons are programs.  Below their code stands what they printed when this page was made.  After each
lesson come the files that it leads to.  Prose stands beside the code that it explains, or above it on a
narrow screen.
"""

# ---------------------------------------------------------------------------- the order


def reading_order() -> list[Path]:
    """Return the lessons, each followed by the files that its paragraph "Read next" names.

    Raises
    ------
    ValueError
        If a file is not there, or is named twice.
    """
    order: list[Path] = []
    for lesson in LESSONS:
        order.append(lesson)
        opening = lesson.read_text(encoding="utf-8").split('"""')[1]
        for name in re.findall(r"[\w/]+\.py\b", opening.partition("Read next: ")[2]):
            file = ROOT / name
            if EXAMPLES / name in LESSONS:
                continue  # the next lesson
            if not file.is_file():
                raise ValueError(f"{lesson.name} names {name} to read next, which is not there")
            if file in order:
                raise ValueError(f"{lesson.name} names {name} to read next, which came before")
            order.append(file)
    return order


# ---------------------------------------------------------------------------- chapters


class Row(NamedTuple):
    """A piece of a chapter: prose in Markdown; beside it, in HTML, the code and what it printed."""

    prose: str
    code: str = ""
    shown: str = ""
    name: str = ""
    """Of the function or class that is defined."""
    heading: str = ""
    examples: str = ""
    """Markdown, too; wide, and so it stands below the code."""


class Chapter(NamedTuple):
    """A lesson or a file; ``name`` is the module's, and the first part of its anchors."""

    name: str
    title: str
    subtitle: str
    rows: list[Row]
    error: str = ""
    """What ended the lesson early."""


def from_lesson(name: str, notebook: Any, note: str, error: str = "") -> Chapter:
    """Return the chapter of a lesson; ``note`` says why its outputs are not complete."""
    opening, *cells = notebook.cells
    heading, _, prose = opening.source.partition("\n")
    title, _, subtitle = heading.strip("# ").partition(": ")
    subtitle = subtitle[:1].upper() + subtitle[1:]
    rows = [Row(prose + note)]
    prose = ""
    for cell in cells:
        if cell.cell_type == "markdown":
            prose += f"\n\n{cell.source}"
        else:
            shown = "".join(map(display, cell.outputs))
            rows.append(Row(prose, "\n".join(highlighted(cell.source)), shown))
            prose = ""
    return Chapter(name, title, subtitle, [*rows, Row(prose)], error)


def display(output: Any) -> str:
    """Return what a cell showed: a picture, text, or the error that ended the lesson."""
    data = output.get("data", {})
    if svg := data.get("image/svg+xml"):
        return f"<figure>{svg[svg.index('<svg') :]}</figure>"
    if png := data.get("image/png"):
        source = f"data:image/png;base64,{''.join(png.split())}"
        return f'<figure><img alt="{html.escape(data["text/plain"])}" src="{source}"></figure>'
    if output.output_type == "error":
        return f'<pre class="shown">The lesson ended here: {html.escape(reason(output))}</pre>'
    return f'<pre class="shown">{html.escape(output.get("text") or data["text/plain"])}</pre>'


def from_code(name: str, title: str, source: str) -> Chapter:
    """Return the chapter of a file: its docstring, and a row for each definition that has one."""
    tree, lines, coloured = ast.parse(source), source.splitlines(), highlighted(source)
    subtitle, _, opening = (ast.get_docstring(tree) or "").partition("\n\n")
    strings = {*range(tree.body[0].end_lineno or 0)}  # lines that are shown as prose
    starts = {0: ("", "")}
    for before, after in pairwise(tree.body):
        if isinstance(before, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(before):
            starts[first_line(after, lines)] = "", ""
    for full_name, node in documented(tree):
        starts[first_line(node, lines)] = full_name, ast.get_docstring(node) or ""
        first, last = node.body[0].lineno - 1, node.body[0].end_lineno
        strings |= {*range(first, last + (lines[last : last + 1] == [""]))}
    rows = [Row(markdown(opening))]
    for start, end in pairwise([*sorted(starts), len(lines)]):
        kept = [i for i in range(start, end) if i not in strings]
        while kept and not lines[kept[0]]:
            del kept[0]
        ruler = re.fullmatch(r" *# -{2,} (.+)", lines[kept[0]]) if kept else None
        code = "\n".join(coloured[i] for i in kept[bool(ruler) :]).strip("\n")
        full_name, docstring = starts[start]
        prose, mark, examples = markdown(docstring).partition("### Examples\n")
        heading = ruler[1] if ruler else ""
        rows.append(Row(prose, code, "", full_name, heading, mark + examples))
    return Chapter(name, title, subtitle, rows)


def documented(node: ast.AST, outside: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the full names of the definitions that have a docstring, and their nodes."""
    for child in ast.iter_child_nodes(node):
        name = outside
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            name = f"{outside}.{child.name}".strip(".")
            if ast.get_docstring(child):
                yield name, child
        yield from documented(child, name)


def first_line(node: Any, lines: Sequence[str]) -> int:
    """Return the index of a statement's first line, with its decorators and the comments above."""
    start: int = min(n.lineno for n in (node, *getattr(node, "decorator_list", ()))) - 1
    while not lines[start - 1] or lines[start - 1].startswith(" " * node.col_offset + "#"):
        start -= 1
    return start


def markdown(docstring: str) -> str:
    """Return a docstring in Markdown, which it nearly is."""

    def section(found: re.Match[str]) -> str:
        title, body = found.groups()
        if title != "Examples":  # but names, each with a text that is indented
            body = re.sub(r"^(\S.*)\n {4}(?=\S)", r"\n`\1`\n:   ", body, flags=re.MULTILINE)
        return f"### {title}\n\n{body}"

    sections = re.compile(r"^(\w+)\n-{4,}\n(.*?)(?=^\w+\n-{4,}\n|\Z)", re.MULTILINE | re.DOTALL)
    text = sections.sub(section, re.sub("^={4,}$", "---", docstring, flags=re.MULTILINE))
    blocks = re.split(r"\n\n+", text.replace("::\n", ":\n"))
    for i, block in enumerate(blocks):
        if block.startswith(">>>"):
            blocks[i] = f"```pycon\n{block}\n```"
        elif re.search(r"^\S.*\S {4,}\S", block, re.MULTILINE):  # something stands below another
            blocks[i] = re.sub("^", "    ", block, flags=re.MULTILINE)
    return "\n\n".join(blocks)


def highlighted(code: str, language: str = "python") -> list[str]:
    """Return the lines of code in HTML."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name

    lexer = get_lexer_by_name(language, stripnl=False)
    marked = highlight(code, lexer, HtmlFormatter(nowrap=True)).replace("<span></span>", "")
    plain = r'<span class="(?:n|nn|o|p|w)">(.*?)</span>'  # half the page, and it has no colour
    return re.sub(plain, r"\1", marked).rstrip("\n").split("\n")


# ---------------------------------------------------------------------------- running a lesson


def run(notebook: Any) -> str:
    """Run a lesson in a process of its own, as Jupyter does; return what ended it early, if anything."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    from nbformat.v4 import new_output
    from zmq import IPC_PATH_MAX_LEN

    own = KernelSpecManager(kernel_dirs=[])  # this Python, whatever kernels there are besides
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=own)
    client = NotebookClient(
        notebook,
        km=manager,
        resources={"metadata": {"path": str(EXAMPLES)}},
        shutdown_kernel="immediate",
    )
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as running:
        manager.connection_file = f"{place}/kernel.json"
        # by sockets in this folder if their paths are short enough, else by ports of this machine
        if os.name == "posix" and len(os.fsencode(f"{place}/kernel-1")) <= IPC_PATH_MAX_LEN:
            manager.transport, manager.ip = "ipc", f"{place}/kernel"
        with terminal.patience():  # a kernel that is only half started could not be ended
            # its last words, when it is stopped, go to stderr
            kernel = client.setup_kernel(cleanup_kc=True, stderr=subprocess.DEVNULL)
            running.enter_context(kernel)  # not execute(), which would keep Ctrl-C to itself
        try:
            for i, cell in enumerate(notebook.cells):
                client.execute_cell(cell, i)
        except CellExecutionError as error:
            return reason(error)
        except DeadKernelError as error:  # as when memory runs out; the kernel could not say so
            output = new_output("error", ename=type(error).__name__, evalue=str(error))
            cell.outputs.append(output)
            return reason(output)
    return ""


def reason(error: Any) -> str:
    """Return the name of an error in a notebook, and what it says."""
    return f"{error.ename}: {error.evalue}"


# ---------------------------------------------------------------------------- the page

#: What becomes a link if it stands outside of links, formulas and blocks of code.
MENTION = re.compile(
    r"<(pre|a|math)\b.*?</\1>|arXiv:(\d{4}\.\d{5})|[\w/]*\w\.py\b|(?:minigrad|loradora)(?:\.\w+)+",
    re.DOTALL,
)


class Page:
    """The page of some chapters."""

    def __init__(self, chapters: Sequence[Chapter]) -> None:
        from latex2mathml.converter import convert
        from markdown_it import MarkdownIt
        from mdit_py_plugins.deflist import deflist_plugin
        from mdit_py_plugins.dollarmath import dollarmath_plugin

        def colours(code: str, language: str, _: str) -> str:
            return "\n".join(highlighted(code, language))

        self.chapters = chapters
        self.reader = MarkdownIt("commonmark", {"html": False, "highlight": colours})
        self.reader.use(deflist_plugin)
        self.reader.use(dollarmath_plugin, renderer=lambda tex, _: convert(tex))
        rows = [(chapter, row) for chapter in chapters for row in chapter.rows]
        self.anchors = {f"{chapter.name}.{row.name}".strip(".") for chapter, row in rows}

    def html(self) -> str:
        """Return the page in HTML."""
        contents = body = ""
        links = [
            f' <a href="#{chapter.name}">next: {chapter.title}</a>' for chapter in self.chapters
        ]
        for chapter, after in zip(self.chapters, [*links[1:], ""]):
            name, title = chapter.name, chapter.title
            kind = "file" if title.endswith(".py") else "lesson"
            subtitle = self.reader.renderInline(re.sub(r":\w+:`", "`", chapter.subtitle))
            contents += f'<li class="{kind}"><a href="#{name}">{title}</a> {subtitle}\n'
            rows = "\n".join(self.row(row, name) for row in chapter.rows)
            body += (
                f'<section class="{kind}" id="{name}">\n'
                f'<nav><a href="#contents">contents</a>{after}</nav>\n'
                f"<h2>{title}</h2>\n<p class=subtitle>{subtitle}</p>\n{rows}\n</section>\n"
            )
        style = (EXAMPLES / "book.css").read_text(encoding="utf-8")
        return (
            f'<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{TITLE}</title>\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<style>\n{style}</style>\n<header>\n<h1>{TITLE}</h1>\n{self.prose(INTRODUCTION)}"
            f"<h2 id=contents>Contents</h2>\n<ul>\n{contents}</ul>\n</header>\n{body}</html>\n"
        )

    def row(self, row: Row, module: str) -> str:
        """Return a row in HTML: prose and code side by side, or whichever there is."""
        name = f"{module}.{row.name}".strip(".")
        prose = self.prose(row.prose, name)
        if not row.code:
            return f"<div class=prose>\n{prose}</div>"
        heading = f"<h3>{html.escape(row.heading)}</h3>\n" if row.heading else ""
        anchor, label = f" id={name}", f"<h4><code>{row.name}</code></h4>\n"
        if not row.name:
            anchor = label = ""
        below = row.shown + self.prose(row.examples, name)
        return (
            f"{heading}<div class=row{anchor}>\n<div class=prose>\n{label}{prose}</div>\n"
            f"<div class=code><pre>{row.code}</pre>{below}</div></div>"
        )

    def prose(self, source: str, place: str = "") -> str:
        """Return Markdown in HTML, with headings a level lower, and links to what it names."""

        def role(found: re.Match[str]) -> str:
            goal = self.find(found[1], place)
            return f"[`{found[1]}`](#{goal})" if goal else f"`{found[1]}`"

        def mention(found: re.Match[str]) -> str:
            if found[2]:
                return f'<a href="https://arxiv.org/abs/{found[2]}">{found[0]}</a>'
            goal = None if found[1] else self.find(found[0])
            return f'<a href="#{goal}">{found[0]}</a>' if goal else found[0]

        tokens = self.reader.parse(re.sub(r":\w+:`~?([^`]+)`", role, source))
        for token in tokens:
            if token.type.startswith("heading"):
                token.tag = f"h{int(token.tag[1]) + 1}"
        return MENTION.sub(mention, self.reader.renderer.render(tokens, self.reader.options, {}))

    def find(self, name: str, place: str = "") -> str | None:
        """Return the anchor of a file, or of what a name means in some place, if there is just one."""
        if name.endswith(".py"):
            name = name.removesuffix(".py").removeprefix("examples/").replace("/", ".")
        while place:  # from the inside out
            if f"{place}.{name}" in self.anchors:
                return f"{place}.{name}"
            place = place.rpartition(".")[0]
        ends = {anchor for anchor in self.anchors if f".{anchor}".endswith(f".{name}")}
        package, _, rest = name.partition(".")
        file = ROOT / package / "__init__.py"
        if not ends and file.is_file():  # a name that the package takes from one of its modules
            modules = re.findall(r"^from ([\w.]+) import", file.read_text(encoding="utf-8"), re.M)
            ends = self.anchors & {f"{module}.{rest}" for module in modules}
        return ends.pop() if len(ends) == 1 else None


# ---------------------------------------------------------------------------- the command


def chapter_of(file: Path, wanted: bool) -> Chapter:
    """Return the chapter of a file; if it is a lesson, run it first if that is wanted."""
    import jupytext

    name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removeprefix("examples.")
    if file not in LESSONS:
        title = file.relative_to(ROOT).as_posix()
        return from_code(name, title, file.read_text(encoding="utf-8"))
    notebook, begin = jupytext.read(file), time.perf_counter()
    if not wanted:
        return from_lesson(name, notebook, "\n\n(It was not run for this page.)")
    print(f"   {name:30}", end="", flush=True)
    error = run(notebook)
    print(f"{time.perf_counter() - begin:6.1f} s   {error}")
    note = "\n\n(The run for this page ended early.)" if error else ""
    return from_lesson(name, notebook, note, error)


def main() -> None:
    """Make the page; end with status 1 if a lesson ended early."""
    parser = terminal.begin(__doc__)
    add = parser.add_argument
    numbers = range(1, len(LESSONS) + 1)
    out = Path("out/book.html")
    add("--out", type=Path, default=out, metavar="FILE", help=f"where to write the page ({out})")
    add(
        "--run", type=int, nargs="*", choices=numbers, default=numbers, metavar="N",
        help="which lessons to run, or none (all)",
    )  # fmt: skip
    options = parser.parse_args()
    if not all(map(find_spec, NEEDED)):
        parser.error(f"the page needs more packages {ADVICE}")
    parser.expect_file("--out", options.out)
    try:
        order = reading_order()
    except ValueError as error:
        parser.error(str(error))
    wanted = [LESSONS[number - 1] for number in options.run]
    chapters = [chapter_of(file, file in wanted) for file in order]
    page = Page(chapters).html()
    with terminal.patience():
        options.out.write_text(page, encoding="utf-8")
    print(f"{options.out}: {len(page.encode()) / 1e6:.1f} MB")
    if early := [chapter.title for chapter in chapters if chapter.error]:
        parser.exit(1, f"{parser.prog}: ended early: {', '.join(early)}\n")


if __name__ == "__main__":
    main()
