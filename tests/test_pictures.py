"""The pictures that explain: they are what the command draws, and what they show is so."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import minigrad as mg
from minigrad.engine import ancestry

ROOT = Path(__file__).parents[1]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples")
        import pictures
    return pictures


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_the_committed_pictures_are_what_the_command_draws(pictures, name):
    committed = (ROOT / "examples" / "figures" / f"{name}.svg").read_text(encoding="utf-8")
    assert getattr(pictures, name)() == committed


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_all_of_a_picture_is_on_its_page_and_every_tip_is_there(pictures, name):
    root = ElementTree.fromstring(getattr(pictures, name)())
    *_, width, height = map(float, root.get("viewBox").split())
    for words in root.iter(f"{SVG}text"):
        left, right = extent(words)
        assert 0 <= left < right <= width, words.text
        assert 14 <= float(words.get("y")) <= height - 5
    tips = {f"url(#{tip.get('id')})" for tip in root.iter(f"{SVG}marker")}
    assert tips == {path.get("marker-end") for path in root.iter(f"{SVG}path")} - {None}


def extent(words) -> tuple[float, float]:
    """Return from where to where words go, if a character is half its size wide."""
    width = 0.5 * float(words.get("font-size", 15)) * len("".join(words.itertext()))
    left = float(words.get("x")) - (width / 2 if words.get("text-anchor") else 0)
    return left, left + width


def test_the_boxes_of_lora_are_in_proportion(pictures):
    root = ElementTree.fromstring(pictures.lora(inputs=50, outputs=30, r=2, unit=4))
    _, *boxes = root.iter(f"{SVG}rect")  # the first is the page
    assert [(float(box.get("width")), float(box.get("height"))) for box in boxes] == [
        (200, 120),  # W0
        (200, 8),  #   A
        (8, 120),  #   B
    ]


def cross(a, b) -> float:
    """Return the product of both lengths and the sine of the angle between."""
    return a[0] * b[1] - a[1] * b[0]


def points(path: str) -> np.ndarray:
    return np.array([[float(n) for n in p.split(",")] for p in re.findall(r"[\d.]+,[\d.]+", path)])


def test_the_picture_of_dora_shows_what_the_derivation_says(pictures):
    """Its arrows are read back from the drawing."""
    row = pictures.ROW
    root = ElementTree.fromstring(pictures.dora())
    arrows = [points(p.get("d")) for p in root.iter(f"{SVG}path") if p.get("marker-end")]
    (w0, sBA, v, w), (along, across, q, exact, held, dropped) = np.split(
        [(end - start) * [1, -1] for start, end in arrows], [4]
    )
    near = {"abs": 0.15}  # of a pixel, since coordinates are written to a tenth
    unit = np.linalg.norm(w0) / np.linalg.norm(row.w0)
    assert w0 + sBA == pytest.approx(v, **near)  # V = W0 + s B A
    assert np.linalg.norm(w) == pytest.approx(unit * row.m, **near)  # its length is m
    assert cross(w, v) == pytest.approx(0, abs=0.3 * np.linalg.norm(v))  # its direction is V's
    assert along + across == pytest.approx(q, **near)
    assert along @ across == pytest.approx(0, abs=0.15 * np.linalg.norm(q))
    assert cross(along, v) == pytest.approx(0, abs=0.15 * np.linalg.norm(v))
    unit = np.linalg.norm(q) / np.linalg.norm(row.q)
    assert np.linalg.norm(along) == pytest.approx(unit * row.gradients(False).m[0], **near)
    assert exact == pytest.approx(unit * row.gradients(detach_norm=False).V[0], abs=0.2)
    assert held == pytest.approx(unit * row.gradients(detach_norm=True).V[0], abs=0.2)
    c = row.m / np.linalg.norm(row.v)
    assert exact == pytest.approx(c * across, abs=0.2)
    assert held == pytest.approx(c * q, abs=0.2)
    assert dropped == pytest.approx(-c * along, abs=0.2)
    assert held + dropped == pytest.approx(exact, **near)


def label_boxes(root):
    """Return the rectangle (left, top, right, bottom) of every derivative on an arrow."""
    for words in root.iter(f"{SVG}text"):
        if words.get("fill"):
            left, right = extent(words)
            y = float(words.get("y"))
            yield left, y - 12, right, y + 3


def along_arrow(path: str) -> np.ndarray:
    """Return points along an arrow of lesson 1: a cubic Bézier curve, then a line to the right."""
    p0, p1, p2, p3 = points(path)
    t = np.linspace(0, 1, 400)[:, None]
    s = 1 - t
    curve = s**3 * p0 + 3 * s * s * t * p1 + 3 * s * t * t * p2 + t**3 * p3
    end = float(re.search(r"H(\d+)", path)[1])
    straight = np.stack([np.linspace(p3[0], end, 50), np.full(50, p3[1])], axis=1)
    return np.concatenate([curve, straight])


def labels_are_free(svg: str) -> bool:
    """Whether no derivative in lesson 1's picture is crossed by an arrow, a box or another one."""
    root = ElementTree.fromstring(svg)
    labels = list(label_boxes(root))
    arrows = np.concatenate(
        [along_arrow(p.get("d")) for p in root.iter(f"{SVG}path") if p.get("marker-end")]
    )
    _, *rects = root.iter(f"{SVG}rect")
    taken = []
    for rect in rects:
        x, y, width, height = (float(rect.get(key)) for key in ("x", "y", "width", "height"))
        taken.append((x, y, x + width, y + height))
    for left, top, right, bottom in labels:
        x, y = arrows.T
        if np.any((left < x) & (x < right) & (top < y) & (y < bottom)):
            return False
        if any(left < x1 and x0 < right and top < y1 and y0 < bottom for x0, y0, x1, y1 in taken):
            return False
        taken.append((left, top, right, bottom))
    return True


def graph_of(pictures, formula):
    """Return the picture of a formula in a and b, in which every derivative is 1."""
    a, b = mg.Tensor(0.5, requires_grad=True), mg.Tensor(-2.0, requires_grad=True)
    result = eval(formula, {"mg": mg, "a": a, "b": b})

    def edges(node):
        return [(parent, 1.0) for parent in node.parents if parent is not None]

    graph = pictures.Graph(ancestry(result), lambda node: ("name", 1.0, -1.0), edges)
    return graph._repr_svg_()


@pytest.mark.parametrize("formula", ["mg.tanh(a * b) + a * a", "a + a * (b - a) / b"])
def test_no_derivative_on_the_graph_is_crossed(pictures, formula):
    svg = graph_of(pictures, formula)
    assert "−1.0000" in svg  # a minus sign, not a hyphen
    assert "-1.0000" not in svg
    assert labels_are_free(svg)


def test_where_arrows_must_cross_a_derivative_they_pass_behind_it(pictures):
    svg = graph_of(pictures, "a * a * a * a * b")
    assert not labels_are_free(svg)
    root = ElementTree.fromstring(svg)
    drawn = [e for e in root if e.text == "+1.00" or e.get("marker-end")]
    assert [e.tag for e in drawn] == [f"{SVG}path"] * 8 + [f"{SVG}text"] * 16
    assert [e.get("stroke") for e in drawn[8:]] == ["#fff", None] * 8  # each twice, first to clear


def draw(*arguments, cwd):
    command = [sys.executable, ROOT / "examples" / "pictures.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_the_command_draws_into_a_folder(pictures, tmp_path):
    done = draw("new/folder", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [
        str(Path("new/folder", name)) for name in ("lora.svg", "dora.svg")
    ]
    written = (tmp_path / "new" / "folder" / "dora.svg").read_text(encoding="utf-8")
    assert written == pictures.dora()


def test_the_command_refuses_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    done = draw("file", cwd=tmp_path)
    assert done.returncode == 2
    assert re.match(
        r"pictures\.py: error: argument folder: cannot use file as a directory", done.stderr
    )
