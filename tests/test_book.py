"""examples/book.py: the lessons and all of the code on one page, which needs nothing else."""

import ast
import html
import importlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from test_examples import CONSOLE, run

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
BOOK = EXAMPLES / "book.py"

#: Tools, which make pictures and pages of the chapters.
NO_CHAPTERS = {"book.py", "pictures.py"}


with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(EXAMPLES))
    PAGES = importlib.import_module("book")


@pytest.fixture
def book():
    return PAGES


needs_extra = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, PAGES.NEEDED)), reason="needs the extra 'book'"
)

# ----------------------------------------------------------------------------- the order


def test_every_lesson_and_every_file_is_a_chapter(book):
    order = book.reading_order()
    modules = {
        file
        for folder in ("minigrad", "loradora", "examples")
        for file in (ROOT / folder).glob("*.py")
        if file.name != "__init__.py" and file.name not in NO_CHAPTERS
    }
    assert len(order) == len(set(order))
    assert set(order) == modules
    assert [file for file in order if file in book.LESSONS] == book.LESSONS


@pytest.mark.parametrize(
    ("named", "wrong"),
    [
        ("minigrad/operations.py", "minigrad/operations.py to read next, which is not there"),
        ("ops.py", "ops.py to read next, which is not there"),
        ("minigrad/ops.py, minigrad/ops.py", "minigrad/ops.py to read next, which came before"),
    ],
)
def test_a_file_that_is_not_there_or_came_before_is_refused(
    book, named, wrong, tmp_path, monkeypatch
):
    lesson = tmp_path / "01_first.py"
    lesson.write_text(f'# %% [markdown]\n"""\n# Lesson 1: x.\n\nRead next: {named}.\n"""\n')
    monkeypatch.setattr(book, "LESSONS", [lesson])
    with pytest.raises(ValueError, match=re.escape(f"01_first.py names {wrong}")):
        book.reading_order()


# ----------------------------------------------------------------------------- the page


class Reader(HTMLParser):
    """Reads what the page refers to, and the text of its blocks."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loaded, self.tags = [], [], [], []
        self.open, self.blocks = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"]] if tag == "a" else []
        self.loaded += [attrs[name] for name in ("src", "srcset", "data") if name in attrs]
        self.loaded += [attrs["href"]] if "href" in attrs and tag != "a" else []
        if tag == "pre":
            self.blocks.append("")
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "pre" in self.open:
            self.blocks[-1] += data


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The page, with the first lesson run."""
    folder = tmp_path_factory.mktemp("book")
    result = run(BOOK, "--run", "1", "--out", "new/book.html", cwd=folder)
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(r" +01_backward +\d+\.\d s +\nnew/book\.html: \d\.\d MB\n", result.stdout)
    assert [path.name for path in folder.rglob("*.*")] == ["book.html"]
    return (folder / "new" / "book.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(made):
    return Reader(made)


@needs_extra
def test_the_page_loads_nothing_and_runs_nothing(made, page):
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert all(source.startswith("data:image/") for source in page.loaded)
    style = made[made.index("<style>") : made.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


@needs_extra
def test_every_link_leads_somewhere(book, page):
    inside = {link.removeprefix("#") for link in page.links if link.startswith("#")}
    assert inside <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert {"contents", "01_backward", "minigrad.ops.matmul", "digits"} <= inside | set(page.ids)
    papers = [link for link in page.links if not link.startswith("#")]
    assert papers
    assert all(re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", link) for link in papers)


@needs_extra
def test_a_docstring_leads_to_what_it_names(made):
    assert '<a href="#loradora.by_hand.lora_forward"><code>lora_forward</code></a>' in made
    assert '<a href="#minigrad.ops">minigrad.ops</a>' in made
    assert '<a href="#02_gradcheck">02_gradcheck.py</a>' in made
    reexported = '<a href="#minigrad.functional.gelu"><code>minigrad.gelu</code></a>'
    assert reexported in made


@pytest.fixture(scope="module")
def chapters(made):
    """The HTML of each chapter, by the name of its file."""
    section = r'<section class="\w+" id="([\w.]+)">\n<nav>.*?</nav>(.*?)</section>'
    return dict(re.findall(section, made, re.DOTALL))


def code_and_prose(file):
    """The lines of a file's code, and its prose: cells in Markdown, or docstrings below names."""
    source = file.read_text(encoding="utf-8")
    if file in PAGES.LESSONS:
        cells = importlib.import_module("jupytext").reads(source, "py:percent").cells
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        prose = [cell.source for cell in cells if cell.cell_type == "markdown"]
        return [line for line in code.splitlines() if line], prose
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    lines, prose = source.splitlines(), []
    for node in sorted(filter(ast.get_docstring, nodes), key=lambda node: node.body[0].lineno):
        prose += [getattr(node, "name", file.relative_to(ROOT).as_posix()), ast.get_docstring(node)]
        for i in range(node.body[0].lineno - 1, node.body[0].end_lineno):
            lines[i] = ""
    return [line for line in lines if line], prose


#: The title of a section, or a block of code.
CODE = re.compile(
    r"<h3>([^<]*)</h3>(?=\n<div class=row)|<div class=code><pre>(.*?)</pre>", re.DOTALL
)


def text_of(markup):
    """What is read between the tags; those of colours stand inside of words."""
    markup = re.sub(r"</?span.*?>", "", markup)
    return html.unescape(re.sub(r"<.*?>", " ", markup, flags=re.DOTALL))


def words_of(markdown):
    """The words, with "formula" for each formula, and without the numbers of lists and headings."""
    plain = re.sub(r":\w+:`", "`", markdown.lower())
    plain = re.sub(r"(\$\$?)\S.*?\1", " formula ", plain, flags=re.DOTALL)
    return re.findall(r"\w+", re.sub(r"^[ #]*\d\. ", "", plain, flags=re.MULTILINE))


@needs_extra
def test_each_chapter_shows_its_code_line_by_line(book, chapters):
    """All but docstrings and blank lines, in order; the title of a section may be a heading."""
    names = {".".join(file.with_suffix("").parts[-2:]): file for file in book.reading_order()}
    assert [name.removeprefix("examples.") for name in names] == list(chapters)
    for file, chapter in zip(names.values(), chapters.values(), strict=True):
        shown = text_of("\n".join(map("".join, CODE.findall(chapter)))).splitlines()
        shown, expected = (
            [re.sub(r"^ *# -{2,} ", "", line) for line in lines if line]
            for lines in (shown, code_and_prose(file)[0])
        )
        assert shown == expected, file


@needs_extra
def test_each_chapter_shows_its_prose_word_by_word(book, chapters):
    other = re.compile(
        r'<pre class="shown">.*?</pre>|<figure>.*?</figure>|\(It was not run for this page\.\)',
        re.DOTALL,
    )
    for file, chapter in zip(book.reading_order(), chapters.values(), strict=True):
        prose = other.sub("", CODE.sub("", chapter))
        prose = re.sub(r"<math.*?</math>", "formula", prose, flags=re.DOTALL)
        prose = re.sub(r"<h4><code>(?:\w+\.)*(\w+)</code>", r"\1", prose)
        assert words_of(text_of(prose)) == words_of("\n".join(code_and_prose(file)[1])), file


@needs_extra
def test_formulas_are_mathml_and_those_that_are_aligned_stay_so(made, page):
    assert "<msup><mi>a</mi><mn>2</mn></msup>" in made
    assert not re.search(r"\$\S", re.sub(r"<pre.*?</pre>", "", made, flags=re.DOTALL))
    assert any("2. move it across the inner product  ⟨ȳ, dy⟩" in block for block in page.blocks)


@needs_extra
def test_a_lesson_shows_what_it_printed_and_its_picture(made, page):
    assert any("  by minigrad       0.1600513167" in block for block in page.blocks)
    assert re.search(r"<figure><svg .*?gradient \+0\.1601.*?</svg>\s*</figure>", made, re.DOTALL)
    assert made.count("(It was not run for this page.)") == 10


@needs_extra
def test_what_a_cell_shows(book):
    shown = importlib.import_module("nbformat.v4").new_output
    picture = shown("display_data", {"image/png": "iVBO\nRw0=\n", "text/plain": "A & B"})
    assert book.display(picture) == (
        '<figure><img alt="A &amp; B" src="data:image/png;base64,iVBORw0="></figure>'
    )
    text = shown("execute_result", {"text/plain": "no figure: <none>"})
    assert book.display(text) == '<pre class="shown">no figure: &lt;none&gt;</pre>'


@pytest.fixture
def failing_lesson(book, tmp_path, monkeypatch):
    """A lesson that prints and then fails, in place of the others."""
    file = tmp_path / "01_first.py"
    opening = '# %% [markdown]\n"""\n# Lesson 1: it fails.\n"""\n\n'
    file.write_text(f"{opening}# %%\nprint(1)\nimport absent\n\n# %%\nprint(2)\n")
    monkeypatch.setattr(book, "LESSONS", [file])
    monkeypatch.setattr(book, "ROOT", tmp_path)
    return file


@needs_extra
def test_a_lesson_that_fails_says_so_in_the_place_of_its_output(book, failing_lesson):
    chapter = book.chapter_of(failing_lesson, wanted=True)
    said = "ModuleNotFoundError: No module named &#x27;absent&#x27;"
    assert chapter.title == "Lesson 1"
    assert chapter.subtitle == "It fails."
    assert "(The run for this page ended early.)" in chapter.rows[0].prose
    assert chapter.rows[1].shown == (
        f'<pre class="shown">1\n</pre><pre class="shown">The lesson ended here: {said}</pre>'
    )
    assert chapter.rows[2].shown == ""


@needs_extra
def test_a_lesson_whose_process_dies_has_failed_too(book, failing_lesson):
    text = failing_lesson.read_text()
    failing_lesson.write_text(text.replace("import absent", "import os\nos._exit(3)"))
    chapter = book.chapter_of(failing_lesson, wanted=True)
    assert chapter.error == "DeadKernelError: Kernel died"
    assert "(The run for this page ended early.)" in chapter.rows[0].prose
    said = f'<pre class="shown">The lesson ended here: {chapter.error}</pre>'
    assert chapter.rows[1].shown.endswith(said)
    assert chapter.rows[2].shown == ""


@needs_extra
def test_a_long_path_of_temporary_files_is_no_trouble(book, failing_lesson, tmp_path, monkeypatch):
    """A socket's path has at most 107 bytes, and on some systems fewer."""
    folder = tmp_path / ("é" * 60)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    chapter = book.chapter_of(failing_lesson, wanted=True)
    assert chapter.error == "ModuleNotFoundError: No module named 'absent'"
    assert list(folder.iterdir()) == []


# ----------------------------------------------------------------------------- the command


@needs_extra
def test_it_fails_after_writing_the_page_if_a_lesson_fails(
    book, failing_lesson, tmp_path, monkeypatch, capsys
):
    page = tmp_path / "book.html"
    monkeypatch.setattr(sys, "argv", ["book.py", "--out", str(page)])
    with pytest.raises(SystemExit, match="1"):
        book.main()
    assert capsys.readouterr().err == "book.py: ended early: Lesson 1\n"
    assert "The lesson ended here: ModuleNotFoundError" in page.read_text(encoding="utf-8")


def test_without_the_extra_it_says_how_to_get_it(book, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(book, "find_spec", lambda name: None if name == "nbclient" else name)
    monkeypatch.setattr(sys, "argv", ["book.py", "--out", str(tmp_path / "book.html")])
    with pytest.raises(SystemExit, match="2"):
        book.main()
    out, error = capsys.readouterr()
    assert re.fullmatch(r"book\.py: error: .*\(extra 'book'\): pip install .*\n", error)
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@needs_extra
@pytest.mark.parametrize("options", [["--run", "0"], ["--run", "12"], ["--out", "."]], ids=str)
def test_options_that_make_no_sense_are_refused_in_a_line(options, tmp_path):
    result = run(BOOK, *options, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(r"book\.py: error: .*\n", result.stderr)


@pytest.mark.parametrize("python", [[], ["-OO"]], ids=str)
def test_the_help_fits_every_console(python, tmp_path):
    result = run(*python, BOOK, "--help", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "show this help" in result.stdout


@pytest.fixture
def short_folder():
    """A folder in which sockets can be made, however long the path of pytest's folders is."""
    with tempfile.TemporaryDirectory(dir="/tmp" if os.name == "posix" else None) as folder:
        yield folder


@needs_extra
@pytest.mark.parametrize("delay", [0.05, 1], ids=["starting", "running"])
def test_ctrl_c_ends_it_and_the_lesson(delay, tmp_path, short_folder):
    started = subprocess.Popen(
        [sys.executable, "-u", BOOK, "--run", "10", "--out", "book.html"],
        cwd=tmp_path,
        env={**os.environ, **CONSOLE, "TMPDIR": short_folder},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        started.stdout.read(5)
        time.sleep(delay)
        started.send_signal(signal.SIGINT)
        _, error = started.communicate(timeout=15)  # the lesson would take longer
    finally:
        started.kill()
    assert error == b"Interrupted.\n"
    assert started.returncode == -signal.SIGINT
    assert os.listdir(tmp_path) == os.listdir(short_folder) == []
