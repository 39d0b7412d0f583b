"""What type checkers, ``help`` and ``import *`` see of the packages.

The files in ``typed/`` and the Python blocks of the pages are checked by mypy and by pyright, all of them
in one run of each.  Both come with the extra ``dev``; the tests of one that is missing are skipped.
"""

import builtins
import copy
import inspect
import json
import os
import pickle
import pydoc
import re
import runpy
import subprocess
import sys
import types
import typing
from collections import defaultdict

import numpy as np
import numpy.typing as npt
import pytest
from test_docs import ROOT, blocks

import loradora as ld
import minigrad as mg

FILES = {
    path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests/typed").glob("*.py")
}
PAGES = {  # such as README_md_15.py; not what needs PyTorch, which a checker takes minutes to read
    re.sub(r"\W", "_", param.id) + ".py": param.values[0]
    for param in blocks("python")
    if "import torch\n" not in param.values[0]
}
RIGHT = sorted(FILES.keys() - {"refused.py"} | PAGES.keys())
PACKAGES = pytest.mark.parametrize("package", [mg, ld], ids=lambda package: package.__name__)


# ----------------------------------------------------------------------------- type checkers


def run_mypy(folder):
    """Return (file, line, message) for each error that ``mypy --strict`` finds in the folder."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir=cache", "."]
    env = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = re.findall(r"^(.+?):(\d+): error: (.*)$", done.stdout, re.MULTILINE)
    return [(file, int(line), message) for file, line, message in found]


def run_pyright(folder):
    """Return (file, line, message) for each error that pyright finds in the folder."""
    (folder / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)]}))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [
        (os.path.basename(d["file"]), d["range"]["start"]["line"] + 1, d["message"])
        for d in json.loads(done.stdout)["generalDiagnostics"]
        if d["severity"] == "error"
    ]


@pytest.fixture(scope="module", params=[run_mypy, run_pyright], ids=["mypy", "pyright"])
def errors(request, tmp_path_factory):
    """For each file the errors by line that one checker finds."""
    pytest.importorskip(request.param.__name__.removeprefix("run_"))
    folder = tmp_path_factory.mktemp("typed")
    for name, code in (FILES | PAGES).items():
        (folder / name).write_text(code, encoding="utf-8")
    found = defaultdict(dict)
    for file, line, message in request.param(folder):
        found[file].setdefault(line, []).append(message)
    return found


@pytest.mark.parametrize("file", RIGHT)
def test_right_code_passes(errors, file):
    assert errors[file] == {}


def test_wrong_code_is_refused(errors):
    lines = FILES["refused.py"].splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if line.endswith("# refused")}
    assert len(wrong) > 20
    assert errors["refused.py"].keys() == wrong


def test_no_error_lies_elsewhere(errors):
    assert errors.keys() <= FILES.keys() | PAGES.keys()


# ----------------------------------------------------------------------------- types and run time


def fits(value, kind):
    """Whether a value is of a type, as far as one can see."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is list:
        return type(value) is list and all(fits(item, args[0]) for item in value)
    if origin in (np.ndarray, npt.NDArray):  # from NumPy 2.5 on the alias keeps its name
        scalar = args[0] if origin is npt.NDArray else typing.get_args(args[1])[0]
        return type(value) is np.ndarray and (scalar is typing.Any or value.dtype.type is scalar)
    return kind is typing.Any or isinstance(value, origin or kind)


@pytest.fixture
def own_ops(monkeypatch):
    """Operations that are defined in a test are forgotten afterwards."""
    monkeypatch.setattr("minigrad.ops.OPS", dict(mg.OPS))


@pytest.mark.usefixtures("own_ops")
def test_the_types_are_those_of_the_values(monkeypatch):
    asserted = []

    def assert_type(value, kind):
        asserted.append(kind)
        assert fits(value, kind), (value, kind)

    monkeypatch.setitem(
        sys.modules, "typing_extensions", types.SimpleNamespace(assert_type=assert_type)
    )
    runpy.run_path(str(ROOT / "tests/typed/asserted.py"))
    assert len(asserted) == FILES["asserted.py"].count("\nassert_type(")


@pytest.mark.usefixtures("own_ops")
def test_the_script_of_a_user_runs(capsys):
    runpy.run_path(str(ROOT / "tests/typed/user_script.py"))
    assert len(capsys.readouterr().out.splitlines()) == 5


@PACKAGES
def test_the_packages_say_that_they_have_types(package):
    assert (ROOT / package.__name__ / "py.typed").exists()


# ----------------------------------------------------------------------------- names


def public(package):
    """Return what a package has under a public name, without modules that it does not export."""
    return {
        name: value
        for name, value in vars(package).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }


@PACKAGES
def test_all_is_complete_and_in_order(package):
    exported = package.__all__
    assert len(exported) == len(set(exported))
    if package is mg:  # ruff checks the order of a list that is written out
        assert exported == sorted(exported)
    hidden = public(package).keys() - set(exported)
    assert hidden == ({"sum", "max", "min", "abs", "pow"} if package is mg else set())


@PACKAGES
def test_import_star_brings_it_all_and_hides_nothing_of_pythons(package):
    names = {}
    exec(f"from {package.__name__} import *", names)
    del names["__builtins__"]
    assert names.keys() == set(package.__all__)
    assert not names.keys() & vars(builtins).keys()


@PACKAGES
def test_every_exported_name_has_a_docstring(package):
    undocumented = []
    for name in [*package.__all__, *public(package)]:
        value = getattr(package, name)
        if not inspect.getdoc(value) or inspect.getdoc(value) == inspect.getdoc(type(value)):
            undocumented.append(name)
    assert set(undocumented) <= {"OPS"}  # a dict


def test_every_operation_with_a_public_name_is_exported():
    named = {name for name, op in mg.OPS.items() if getattr(mg.ops, name, None) is op}
    assert named - {"sum", "max", "min", "abs", "pow"} <= set(mg.__all__)
    assert all(getattr(mg, name) is mg.OPS[name] for name in named)


# ----------------------------------------------------------------------------- help


@pytest.mark.parametrize(
    ("op", "parameters"),
    [
        ("norm", "(x, axis=None, keepdims=False)"),
        ("add", "(a, b)"),
        ("linear", "(x, w, b=None)"),
        ("softmax", "(x, axis=-1, where=None)"),
        ("concatenate", "(axis, *arrays)"),
    ],
)
def test_help_shows_the_parameters_and_the_docstring_of_an_operation(op, parameters):
    text = pydoc.plain(pydoc.render_doc(mg.OPS[op]))
    assert f"\n{op}{parameters}\n" in text
    assert mg.OPS[op].__doc__.splitlines()[0] in text
    assert str(inspect.signature(mg.OPS[op])) == parameters


@pytest.mark.parametrize("op", list(mg.OPS.values()), ids=list(mg.OPS))
def test_every_operation_shows_the_parameters_of_its_forward(op):
    shown, forward = inspect.signature(op), inspect.signature(op.forward)
    assert list(shown.parameters) == list(forward.parameters)
    for parameter in shown.parameters.values():
        assert parameter.default == forward.parameters[parameter.name].default
        assert parameter.kind == forward.parameters[parameter.name].kind
    assert "Array" not in str(shown)  # the types are those of the forward, which gets arrays


def test_the_help_of_the_package_lists_the_operations_as_functions():
    functions = pydoc.plain(pydoc.render_doc(mg)).partition("\nFUNCTIONS\n")[2]
    assert "\n    norm(x, axis=None, keepdims=False)\n" in functions


@pytest.mark.usefixtures("own_ops")
def test_an_operation_of_ones_own_shows_its_parameters():
    @mg.op(lambda g, y, a, n=2: g * n)
    def times(a, n=2):
        """Return n times a."""
        return a * n

    assert "\ntimes(a, n=2)\n    Return n times a.\n" in pydoc.plain(pydoc.render_doc(times))


@pytest.mark.usefixtures("own_ops")
def test_an_operation_made_of_a_function_without_a_signature_has_none(monkeypatch):
    def refuse(function):
        raise ValueError("no signature found")

    monkeypatch.setattr(inspect, "signature", refuse)  # what NumPy 2.0 has for its ufuncs
    tanh = mg.Op(np.tanh, (lambda g, y, a: g * (1 - y * y),))
    assert not hasattr(tanh, "__signature__")
    mg.gradcheck(tanh, np.array([0.5]))


@pytest.mark.usefixtures("own_ops")
def test_an_operation_whose_function_names_no_arguments_takes_them_by_position(monkeypatch):
    def refuse(function):
        raise ValueError("no signature found")

    monkeypatch.setattr(inspect, "signature", refuse)
    tanh = mg.Op(np.tanh, (lambda g, y, a: g * (1 - y * y),))
    with pytest.raises(TypeError, match="tanh takes its arguments by position"):
        tanh(x=mg.Tensor(0.5))


def test_an_operation_is_copied_and_pickled_as_itself():
    for op in mg.OPS.values():
        assert copy.copy(op) is copy.deepcopy(op) is pickle.loads(pickle.dumps(op)) is op
    model = ld.Sequential(ld.Linear(2, 2))
    model.act = mg.relu
    assert pickle.loads(pickle.dumps(model)).act is copy.deepcopy(model).act is mg.relu


@pytest.mark.usefixtures("own_ops")
def test_a_decorator_without_its_rules_is_refused_when_it_is_called():
    @mg.op
    def double(a):
        return 2 * a

    with pytest.raises(TypeError, match=r"write @mg\.op\(rule\)"):
        double(mg.Tensor(1.0))


@pytest.mark.usefixtures("own_ops")
@pytest.mark.parametrize("rule", [lambda g: 2 * g, lambda g, y: 2 * g, lambda g, y, a, b: 2 * g])
def test_a_rule_of_other_parameters_is_refused_at_once(rule):
    def double(a):
        return 2 * a

    with pytest.raises(TypeError, match=r"rule 0 of double is called as rule\(g, y, a\)"):
        mg.op(rule)(double)


@pytest.mark.parametrize("package", [mg, ld], ids=["minigrad", "loradora"])
def test_a_package_offers_no_module_of_pythons(package):
    assert {"builtins", "types", "typing"}.isdisjoint(dir(package))


def test_the_class_of_operations_shows_how_one_is_made():
    assert list(inspect.signature(mg.Op).parameters) == ["forward", "vjps", "each"]


def test_an_operation_in_a_class_stays_itself():
    class Layer(ld.Module):
        activation = mg.relu

        def forward(self, x):
            return self.activation(x)

    assert Layer.activation is Layer().activation is mg.relu
    assert Layer()(mg.Tensor([-1.0, 2.0])).data.tolist() == [0, 2]
