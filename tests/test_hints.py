"""For names of other libraries, the error says what to write here, and every answer is right.

Each answer is run as code.  If it composes a function of NumPy, the results are compared.
"""

import copy
import functools
import inspect
import math
import operator
import pickle
import re
import subprocess
import sys
import textwrap
import types
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import loradora as ld
import minigrad as mg
from minigrad import hints

A = np.array([[0.5, -1.5, 2.0], [1.25, 0.75, -0.25], [-2.5, 3.0, 1.0]])
B = np.array([[1.0, 2.0, -0.5], [0.5, -3.0, 1.5], [2.5, 0.25, -1.0]])
LABELS = np.array([0, 2, 1])
MASK = A > B


def leaf(a):
    return mg.Tensor(np.array(a), requires_grad=True)


def adapted():
    base = ld.MLP([3, 3], rng=0)
    return ld.get_peft_model(base, ld.LoraConfig(r=1, target_modules="all-linear"), rng=0)


def code(answer):
    return answer.partition("  #")[0]


# ----------------------------------------------------------------------------- compositions

#: The arguments for functions that need special ones.  All others get x, or x and y.
ASKED = {
    "einsum": lambda f, x, y: f("...i,...i", x, y),
    "prod": lambda f, x, y: f(x, axis=0),
    "cumsum": lambda f, x, y: f(x, axis=0),
    "flip": lambda f, x, y: f(x, axis=0),
    "roll": lambda f, x, y: f(x, 2, axis=0),
    "repeat": lambda f, x, y: f(x, 2, axis=0),
    "tile": lambda f, x, y: f(x, 2),
    "moveaxis": lambda f, x, y: f(x, 0, -1),
    "vstack": lambda f, x, y: f([x, y]),
    "row_stack": lambda f, x, y: f([x, y]),
    "hstack": lambda f, x, y: f([x, y]),
    "column_stack": lambda f, x, y: f([x, y]),
    "split": lambda f, x, y: f(x, [2]),
    "array_split": lambda f, x, y: f(x, [2]),
    "take": lambda f, x, y: f(x, LABELS),
    "take_along_axis": lambda f, x, y: f(x, LABELS[:, None], 1)[:, 0],
}


def attention(x, y):
    powers = np.exp(x @ y.T / np.sqrt(x.shape[1]))
    return powers @ y / powers.sum(axis=1, keepdims=True)


#: What NumPy has under no such name, or not in every version.  (tests/interop asks PyTorch itself.)
WRITTEN_OUT = {
    "clamp_min": np.maximum,
    "clamp_max": np.minimum,
    "rsqrt": lambda x: x**-0.5,
    "erfc": np.vectorize(math.erfc),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "leaky_relu": lambda x: np.maximum(x, 0.01 * x),
    "softplus": lambda x: np.logaddexp(0, x),
    "movedim": lambda x: np.moveaxis(x, 0, -1),
    "row_stack": lambda x, y: np.concatenate([x, y]),
    "unbind": list,
    "unstack": list,
    "repeat_interleave": lambda x: np.repeat(x, 2, axis=0),
    "msort": np.sort,
    "topk": lambda x: np.sort(x)[::-1][:2],
    "gather": lambda x: x[[0, 1, 2], LABELS],
    **dict.fromkeys(("index_select", "embedding"), lambda x: np.take(x, LABELS, axis=0)),
    "scaled_dot_product_attention": attention,
    "masked_fill": lambda x: np.where(MASK[: len(np.atleast_2d(x))].reshape(x.shape), 2, x),
    "normalize": lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True),
    "l1_loss": lambda x, y: np.mean(np.abs(x - y)),
    "nll_loss": lambda x: -np.mean(x[[0, 1, 2], LABELS]),
    "binary_cross_entropy": lambda x, y: np.mean(-np.log(np.where(y > 0, x, 1 - x))),
    "one_hot": lambda: np.eye(3)[LABELS],
    **{name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
}

#: Where a function is not defined for every number, or its composition loses digits.
INSIDE = {
    "erfc": lambda x, y: (x / 3, y),
    **dict.fromkeys(("log1p", "log2", "rsqrt"), lambda x, y: (x + 3, y)),
    "binary_cross_entropy": lambda x, y: (1 / (1 + np.exp(-x)), (y > 0).astype(y.dtype)),
}

#: What is composed; the other answers name `mg.op`, or ask NumPy.
COMPOSED = [
    name
    for name, answer in hints.COMPOSITIONS.items()
    if not answer.startswith(("mg.op ", f"np.{name}("))
]


def forms(answer):
    """Return the forms of array that an answer is for, as its note says."""
    note = answer.partition("  # ")[2]
    of = {
        "vector": r"^of (a vector|vectors;)",
        "matrix": r"of (a matrix|(two )?matrices)\b(?!, x @)",
    }
    if re.search("vectors or matrices", note) or not re.search("|".join(of.values()), note):
        return list(of)
    return [form for form, said in of.items() if re.search(said, note)][:1]


CASES_OF_COMPOSITIONS = [
    pytest.param(name, form, id=f"{name}-{form}")
    for name in COMPOSED
    for form in forms(hints.COMPOSITIONS[name])
]


def asked(name, f, x, y):
    """Return what f, the function of that name, gives."""
    return ASKED[name](f, x, y) if name in ASKED else f(*[x, y][: operands(name)])


def operands(name):
    """Return how many Tensors a composition is made of."""
    return sum(bool(re.search(rf"\b{x}\b", code(hints.COMPOSITIONS[name]))) for x in "xy")


def example(name, form, dtype=np.float64):
    """Return two arrays for a function, of vectors or of matrices."""
    x, y = (a.astype(dtype) if form == "matrix" else a[0].astype(dtype) for a in (A, B))
    return INSIDE[name](x, y) if name in INSIDE else (x, y)


def composed(name, x, y):
    """Return what the answer gives."""
    names = {"x": x, "y": y, "n": 3 if name == "one_hot" else 2, "labels": LABELS}
    names |= {"mask": MASK if x.ndim == 2 else MASK[0], "axes": (1, 0) if x.ndim == 2 else (0,)}
    names |= {"np": np, "mg": mg, "functools": functools}
    return eval(code(hints.COMPOSITIONS[name]), names)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "form"), CASES_OF_COMPOSITIONS)
def test_a_composition_is_the_function_that_it_answers(name, form, dtype):
    a, b = example(name, form, dtype)
    if name in WRITTEN_OUT:
        truth = WRITTEN_OUT[name](*(a, b)[: operands(name)])
    else:
        truth = asked(name, operator.attrgetter(name)(np), a, b)
    x = leaf(a)
    found = composed(name, x, leaf(b))
    if isinstance(found, np.ndarray):  # what has no gradient
        return assert_array_equal(found, truth)
    several = isinstance(found, (list, tuple))
    for part, expected in zip(*((found, truth) if several else ([found], [truth])), strict=True):
        assert part.dtype == dtype
        assert part.requires_grad
        assert part.shape == expected.shape
        assert_allclose(part.data, expected, rtol=1e-5 if dtype == np.float32 else 1e-12)
        part.sum().backward()
    assert x.grad.shape == a.shape


#: What a synonym is given; all others of NumPy's are given x.
GIVEN = {
    **dict.fromkeys(("subtract", "multiply", "divide", "true_divide"), lambda x, y: (x, y)),
    **dict.fromkeys(("dot", "linalg.matmul"), lambda x, y: (x, y)),
    "power": lambda x, y: (x, 2),
    "concat": lambda x, y: ([x, y],),
    "permute_dims": lambda x, y: (x, tuple(range(x.ndim))[::-1]),
    "swapdims": lambda x, y: (x, 0, -1),
}


@pytest.mark.parametrize("form", ["vector", "matrix"])
@pytest.mark.parametrize(
    "name", [n for n in hints.SYNONYMS if hasattr(np, n.split(".")[0]) and n != "matrix_transpose"]
)
def test_a_synonym_gives_what_numpy_gives(name, form):
    given = GIVEN.get(name, lambda x, y: (x,))
    a, b = example(name, form)
    truth = operator.attrgetter(name)(np)(*given(a, b))
    found = getattr(mg, hints.SYNONYMS[name])(*given(leaf(a), leaf(b)))
    assert found.shape == truth.shape
    assert_allclose(found.data, truth, rtol=1e-12)


def test_compositions_hold_at_the_hard_points():
    x = mg.Tensor([-np.inf, -1e4, 0.0, 1e4, np.inf, np.nan], requires_grad=True)
    y = eval(code(hints.COMPOSITIONS["softplus"]), {"x": x, "mg": mg, "np": np})
    assert_array_equal(y.data, [0, 0, np.log(2), 1e4, np.inf, np.nan])
    y = eval(code(hints.COMPOSITIONS["leaky_relu"]), {"x": x, "mg": mg})
    assert_array_equal(mg.grad(y.sum(), x).data, [0.01, 0.01, 0.01, 1, 1, 0.01])


@pytest.mark.parametrize(
    "name", [n for n, answer in hints.COMPOSITIONS.items() if answer.startswith(f"np.{n}(")]
)
def test_what_numpy_is_asked_it_answers_for_a_tensor(name):
    values = {"x": leaf(A), "y": leaf(B), "np": np}
    arrays = {"x": types.SimpleNamespace(data=A), "y": B, "np": np}
    plain = eval(
        code(hints.COMPOSITIONS[name]),
        arrays | ({} if ".data" in hints.COMPOSITIONS[name] else {"x": A}),
    )
    assert_array_equal(eval(code(hints.COMPOSITIONS[name]), values), plain)


# ----------------------------------------------------------------------------- everything else


@pytest.fixture
def names(tmp_path):
    """What the names in an answer stand for."""
    model, base = ld.MLP([3, 3], rng=0), ld.MLP([3, 3], rng=0)
    x, y = leaf(A), leaf(B)
    file = tmp_path / "model.npz"
    ld.save_model(file, model)
    return {
        **{"np": np, "mg": mg, "ld": ld, "x": x, "y": y, "n": 3, "axis": 1, "dtype": np.float32},
        **{"data": A, "labels": LABELS, "logits": x, "loss": (x * y).sum(), "path": "layers"},
        **{"model": model, "base": base, "file": file, "folder": tmp_path / "folder"},
        **{"params": model.parameters(), "optimizer": ld.SGD(model.parameters(), lr=0.1)},
        **{"rng": np.random.default_rng(0), "self": ld.Sequential()},
        **{"mask": MASK, "p": leaf(A)},
        "options": {"peft_type": "LORA", "r": 2, "target_modules": ["0"]},
        **{"config": ld.LoraConfig(r=1, target_modules="all-linear"), "name": "default"},
    }


@pytest.mark.parametrize("name", hints.OF_TENSORS)
def test_answers_for_a_tensor_run(name, names):
    mg.cross_entropy(names["model"](A), LABELS).backward()
    exec(code(hints.OF_TENSORS[name]), names)


@pytest.mark.parametrize("name", hints.OF_MINIGRAD)
def test_answers_for_minigrad_run(name, names):
    exec(code(hints.OF_MINIGRAD[name]), names)


#: What makes an array, or draws one.
MADE = {
    **{name: lambda f: f(3) for name in ("zeros", "ones", "eye", "arange")},
    **{name: lambda f: f(A) for name in ("zeros_like", "ones_like", "array", "asarray")},
    "full": lambda f: f(3, 1.0),
    "full_like": lambda f: f(A, 3.0),
    "linspace": lambda f: f(0, 1, 3),
    "normal": lambda f: f(size=3),
    "uniform": lambda f: f(size=3),
}


@pytest.mark.parametrize("name", MADE)
def test_an_answer_makes_what_numpy_makes(name, names):
    made = eval(code(hints.OF_MINIGRAD[name]), names)
    drawn = name in ("normal", "uniform")
    owner = np.random.default_rng(0) if drawn else np
    assert isinstance(made, mg.Tensor)
    assert_array_equal(made.data, MADE[name](getattr(owner, name)))


@pytest.mark.parametrize("law", ["normal", "uniform"])
def test_numbers_are_drawn_from_the_law_that_was_asked_for(law, names):
    drawn = getattr(np.random.default_rng(0), law)
    exec(code(hints.OF_TENSORS[f"{law}_"]), names)
    assert_array_equal(names["x"].data, drawn(size=A.shape))
    short = {"normal": "randn", "uniform": "rand"}[law]
    assert hints.OF_MINIGRAD[short] == hints.OF_MINIGRAD[law]
    names["rng"] = np.random.default_rng(0)
    drawn = np.random.default_rng(0).integers
    assert_array_equal(eval(code(hints.OF_MINIGRAD["randint"]), names), drawn(10, size=3))


@pytest.mark.parametrize("name", ["clone", "copy"])
def test_what_is_kept_of_a_parameter_stays_when_it_is_trained(name):
    x = leaf(A)
    kept = eval(code(hints.OF_TENSORS[name]), {"mg": mg, "x": x})
    (x * x).sum().backward()
    ld.SGD([x], lr=0.1).step()
    assert_array_equal(kept.data, A)
    assert not np.array_equal(x.data, A)


def test_schedules_do_what_those_of_pytorch_do():
    schedules = {
        name: eval(code(hints.OF_LORADORA[name]), {"ld": ld})
        for name in ("LinearLR", "StepLR", "CosineAnnealingLR", "get_cosine_schedule_with_warmup")
    }
    begin, middle, end = ({n: f(t) for n, f in schedules.items()} for t in (0.01, 0.5, 1.0))
    assert begin["LinearLR"] < middle["LinearLR"] == end["LinearLR"] == 1
    assert middle["StepLR"] == begin["StepLR"] * 0.1
    assert begin["CosineAnnealingLR"] > middle["CosineAnnealingLR"] > end["CosineAnnealingLR"] == 0
    name = "get_cosine_schedule_with_warmup"
    assert begin[name] < middle[name] > end[name] == 0


#: Answers must not refer to files that only a clone has: a wheel holds just the two packages.
ANSWERS = {
    **(hints.COMPOSITIONS | hints.OF_TENSORS | hints.OF_MINIGRAD),
    **(hints.OF_MODULES | hints.OF_ADAPTED_MODELS | hints.OF_LORADORA),
}


def test_no_answer_sends_to_a_file_that_is_not_installed():
    assert [
        answer for answer in ANSWERS.values() if re.search(r"\.(py|md)\b|examples", answer)
    ] == []
    sent = {name for answer in ANSWERS.values() for name in re.findall(r"help\((.*?)\)", answer)}
    assert sent == {"mg.op", "ld.Module"}


def test_help_on_op_shows_one_that_works_to_every_order(monkeypatch):
    monkeypatch.setattr("minigrad.ops.OPS", dict(mg.OPS))
    (block,) = re.findall(r"::\n\n((?:    .*\n)+)", inspect.getdoc(mg.op))
    names = {"mg": mg, "np": np}
    exec(textwrap.dedent(block), names)
    assert_array_equal(names["arctan"](A).data, np.arctan(A))
    mg.gradcheck(names["arctan"], A)
    mg.gradgradcheck(names["arctan"], A)


def test_help_on_module_shows_a_layer():
    assert re.search(r">>> class \w+\(Module\):", inspect.getdoc(ld.Module))


@pytest.mark.parametrize("name", hints.OF_MODULES)
def test_answers_for_a_module_run(name, names, capsys):
    exec(code(hints.OF_MODULES[name]), names)


@pytest.mark.parametrize("name", hints.OF_ADAPTED_MODELS)
def test_answers_for_an_adapted_model_run(name, names, capsys):
    model = names["model"] = adapted()
    names |= {"path": "base_model.layers", "optimizer": ld.SGD(model.parameters())}
    if "from_pretrained" in hints.OF_ADAPTED_MODELS[name]:
        model.save_adapter(names["file"])
    elif "ld.load_model" in hints.OF_ADAPTED_MODELS[name]:
        ld.save_model(names["file"], model)
    pytest.importorskip("safetensors") if "save_pretrained" in hints.OF_ADAPTED_MODELS[
        name
    ] else None
    exec(code(hints.OF_ADAPTED_MODELS[name]), names)


@pytest.mark.parametrize("name", hints.OF_LORADORA)
def test_answers_for_loradora_run(name, names):
    names["p"].grad = 2 * B
    if "from_pretrained" in hints.OF_LORADORA[name]:
        adapted().save_adapter(names["file"])
    exec(code(hints.OF_LORADORA[name]), names)


def test_no_answer_is_for_a_name_that_there_is():
    model = adapted()
    owners = [
        (leaf(A), hints.OF_TENSORS),
        (mg, hints.COMPOSITIONS | hints.SYNONYMS | hints.OF_MINIGRAD),
        (ld.MLP([3, 3]), hints.OF_MODULES),
        (model, hints.OF_ADAPTED_MODELS),
        (ld, hints.OF_LORADORA),
    ]
    for owner, answers in owners:
        there = [name for name in answers if hasattr(owner, name)]
        assert there == [], owner
    for theirs, ours in hints.KEYWORDS.items():
        assert theirs != ours


@pytest.mark.parametrize("name", hints.SYNONYMS)
def test_a_synonym_is_the_name_of_a_function(name):
    assert callable(getattr(mg, hints.SYNONYMS[name]))


def test_answers_are_ascii_and_short():
    tables = [hints.COMPOSITIONS, hints.OF_TENSORS, hints.OF_MINIGRAD, hints.OF_ADAPTED_MODELS]
    for answers in [*tables, hints.OF_LORADORA]:
        for name, answer in answers.items():
            assert hints.said(answer).isascii()
            assert len(hints.said(answer)) < 110, name


# ----------------------------------------------------------------------------- how it is said

MODEL, ADAPTED = ld.MLP([3, 3], rng=0), adapted()
SAID = {
    "view": (leaf(A), "view", "'Tensor' object has no attribute 'view': use x.reshape(...)"),
    "unsqueeze": (leaf(A), "unsqueeze", "use mg.expand_dims(...)"),
    "permute": (leaf(A), "permute", "use x.transpose(...)"),
    "a function": (leaf(A), "exp", "use mg.exp(...)"),
    "a composed function": (leaf(A), "logsumexp", "use mg.logsumexp(...)"),
    "a composition": (leaf(A), "square", "use x * x"),
    "a note": (leaf(A), "cumsum", "use np.tri(len(x), dtype=x.dtype) @ x (along the first axis)"),
    "no such function": (
        leaf(A),
        "sin",
        "there is no sin yet: one block makes it, see help(mg.op)",
    ),
    "a device": (leaf(A), "cuda", "use x (on the CPU"),
    "a function in place that there is not": (
        leaf(A),
        "sin_",
        "'sin_': use mg.op (there is no sin",
    ),
    "a question": (leaf(A), "eq", "use x == y"),
    "scatter": (leaf(A), "scatter_", "use mg.where(mask, y, x) (y in the places of the mask)"),
    "enable_grad": (mg, "enable_grad", "use mg.no_grad() (for a with block: outside they are"),
    "moveaxis": (
        leaf(A),
        "moveaxis",
        "use x.transpose(axes) (all of the axes, in their new order)",
    ),
    "a question in one": (
        leaf(A),
        "equal",
        "use x == y (entry by entry; np.array_equal(x, y) asks",
    ),
    "device": (leaf(A), "device", "use 'cpu' (the only one)"),
    "clone": (leaf(A), "clone", "use mg.Tensor(x.data.copy()) (of a leaf; the result"),
    "functional": (mg.functional, "relu", "'minigrad.functional' .*: use mg.relu("),
    "functional.nll_loss": (mg.functional, "nll_loss", "use -x[np.arange(len(x)), labels].mean()"),
    "zero_grad": (leaf(A), "zero_grad", "use optimizer.zero_grad() (or model.zero_grad())"),
    "in place": (leaf(A), "add_", "use x = mg.add(...) (nothing is changed in place)"),
    "a method in place": (leaf(A), "clip_", "use x = x.clip(...) (nothing is changed"),
    "a synonym in place": (leaf(A), "clamp_", "use x = x.clip(...) (nothing is changed"),
    "a composition in place": (leaf(A), "square_", "use x = x * x (nothing is changed"),
    "a leaf in place": (leaf(A), "zero_", "use x.data = np.zeros_like(x.data) (of a leaf)"),
    "to": (MODEL, "to", "'MLP' object has no attribute 'to': use model (there is one device"),
    "half": (MODEL, "half", "dtype=np.float16"),
    "save": (MODEL, "save", "use ld.save_model(file, model)"),
    "merge_adapter": (
        ADAPTED,
        "merge_adapter",
        "'PeftModel' object .*: use model.merge_and_unload()",
    ),
    "save an adapter": (ADAPTED, "save", "use model.save_pretrained(folder)"),
    "a module's, of an adapted one": (ADAPTED, "cuda", "'PeftModel' .*: use model (there is one"),
    "randn": (mg, "randn", "module 'minigrad' has no attribute 'randn': use mg.Tensor(rng.normal"),
    "zeros": (mg, "zeros", "use mg.Tensor(np.zeros(n))"),
    "manual_seed": (mg, "manual_seed", "use rng = np.random.default_rng(0)"),
    "cat": (mg, "cat", "use mg.concatenate(...)"),
    "log1p": (mg, "log1p", "use mg.log(1 + x) (loses digits where x is tiny)"),
    "Adam": (ld, "Adam", "module 'loradora' .*: use ld.AdamW(params, weight_decay=0.0)"),
    "CrossEntropyLoss": (ld.nn, "CrossEntropyLoss", "'loradora.nn' .*: use mg.cross_entropy("),
    "optim.Adam": (ld.optim, "Adam", "'loradora.optim' .*: use ld.AdamW("),
    "LoraModel": (ld, "LoraModel", "use ld.get_peft_model(base, config)"),
    "get_peft_config": (ld, "get_peft_config", "use ld.LoraConfig.from_dict(options)"),
    "a function of minigrad": (ld, "relu", "use mg.relu(...)"),
}


@pytest.mark.parametrize(("owner", "name", "said"), SAID.values(), ids=SAID)
def test_a_name_of_another_library_is_answered(owner, name, said):
    with pytest.raises(AttributeError, match=re.escape(said).replace(r"\.\*", ".*")):
        getattr(owner, name)
    assert not hasattr(owner, name)
    assert getattr(owner, name, None) is None


def test_a_module_with_the_name_of_a_function_says_what_to_call():
    with pytest.raises(TypeError, match=r"minigrad.tensor is a module: use mg.Tensor\(data\)"):
        mg.tensor([1.0, 2.0])
    from minigrad.tensor import Tensor

    assert mg.tensor.Tensor is Tensor


OTHERS = [leaf(A), MODEL, ADAPTED, mg, ld, ld.nn, ld.optim, ld.SGD(MODEL.parameters())]


@pytest.mark.parametrize("owner", OTHERS, ids=lambda owner: type(owner).__name__)
@pytest.mark.parametrize(
    "name",
    [
        *(
            "__deepcopy__",
            "__array_interface__",
            "__array_struct__",
            "__torch_function__",
            "__path_",
        ),
        *("_repr_html_", "_ipython_display_", "_ipython_canary_method_should_not_exist_", "_view"),
        *("viewing", "unheard_of", "unheard_of_"),
        *("shape_", "backward_", "item_", "data_", "T_", "op_", "grad_", "no_grad_", "Tensor_"),
    ],
)
def test_every_other_name_gets_pythons_own_message(owner, name):
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'") as error:
        getattr(owner, name)
    assert "use " not in str(error.value)


def test_python_suggests_a_similar_name():
    attempt = "import minigrad as mg; mg.Tensor(1.0).reshap"
    for said in (attempt, "import minigrad as mg; mg.softmx", "import loradora as ld; ld.ReLu"):
        run = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True)
        assert re.search(r"Did you mean: '(reshape|softmax|ReLU)'", run.stderr), run.stderr


# ----------------------------------------------------------------------------- what it does not disturb


class Failing:
    """Mixed in front: a property that fails."""

    @property
    def view(self):
        """Raise; the name has an answer, which would hide what went wrong."""
        return None.shape

    @property
    def merge(self):
        """Raise; an adapted model is told to merge in another way."""
        return None.shape


class FailingTensor(Failing, mg.Tensor):
    pass


class FailingModule(Failing, ld.ReLU):
    pass


class FailingOptimizer(Failing, ld.SGD):
    pass


@pytest.mark.parametrize(
    "owner",
    [
        FailingTensor([1.0]),
        FailingModule(),
        FailingOptimizer(MODEL.parameters()),
        ld.get_peft_model(
            type("Base", (Failing, ld.MLP), {})([3, 3]),
            ld.LoraConfig(r=1, target_modules="all-linear"),
        ),
    ],
    ids=lambda owner: type(owner).__name__,
)
def test_a_property_that_fails_says_why_itself(owner):
    for name in ("view", "merge"):
        with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'shape'"):
            getattr(owner, name)


def test_an_attribute_of_the_model_inside_goes_before_an_answer():
    base = ld.MLP([3, 3], rng=0)
    base.save = base.merge = 7
    model = ld.get_peft_model(base, ld.LoraConfig(r=1, target_modules="all-linear"))
    assert (model.save, model.merge) == (7, 7)
    with pytest.raises(AttributeError, match="'MLP' object has no attribute 'unheard_of'"):
        _ = model.unheard_of


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))]
)
def test_copies_and_pickles_ask_for_names_that_there_are_not(again):
    assert_array_equal(again(leaf(A)).data, A)
    assert_array_equal(again(MODEL)(A).data, MODEL(A).data)
    assert_array_equal(again(ADAPTED)(A).data, ADAPTED(A).data)


def test_a_tensor_that_was_not_made_has_no_attributes():
    half = mg.Tensor.__new__(mg.Tensor)
    with pytest.raises(AttributeError, match="_data"):
        _ = half.shape


# ----------------------------------------------------------------------------- NumPy, and keywords


@pytest.mark.parametrize(
    ("call", "said"),
    [
        pytest.param(
            np.cumsum, "pass .data if you need no gradient, else use np.tri(len(x)", id="cumsum"
        ),
        pytest.param(np.square, "else use x * x", id="square"),
        pytest.param(np.sin, "one block makes it", id="sin"),
        pytest.param(lambda x: np.vstack([x, x]), "else use mg.concatenate([x, y])", id="vstack"),
        pytest.param(np.matrix_transpose, "use mg.swapaxes", id="matrix_transpose"),
        pytest.param(np.linalg.inv, "make it of the operations here, or pass .data", id="inv"),
    ],
)
def test_numpy_is_refused_with_the_same_answer(call, said):
    with pytest.raises(TypeError, match=f"would lose the gradient.*{re.escape(said)}"):
        call(leaf(A))


KEYWORDS = {
    "sum": lambda x: x.sum(dim=1),
    "mean": lambda x: x.mean(dim=1),
    "var": lambda x: x.var(dim=1),
    "std": lambda x: x.std(dim=1),
    "max": lambda x: x.max(dim=1),
    "min": lambda x: x.min(dim=1),
    "squeeze": lambda x: x.squeeze(dim=1),
    "argmax": lambda x: x.argmax(dim=1),
    "mg.sum": lambda x: mg.sum(x, dim=1),
    "mg.softmax": lambda x: mg.softmax(x, dim=1),
    "mg.norm": lambda x: mg.norm(x, dim=1),
    "mg.std": lambda x: mg.std(x, dim=1),
    "mg.logsumexp": lambda x: mg.logsumexp(x, dim=1),
    "mg.squeeze": lambda x: mg.squeeze(x, dim=1),
    "mg.expand_dims": lambda x: mg.expand_dims(x, dim=1),
    "mg.concatenate": lambda x: mg.concatenate([x, x], dim=1),
    "mg.stack": lambda x: mg.stack([x, x], dim=1),
}


@pytest.mark.parametrize("call", KEYWORDS.values(), ids=KEYWORDS)
def test_a_keyword_of_pytorch_is_translated(call):
    with pytest.raises(TypeError, match=r"dim.*: dim is axis here"):
        call(leaf(A))


def test_several_keywords_are_translated_and_others_are_not():
    with pytest.raises(TypeError, match="mask is where here"):
        mg.softmax(leaf(A), mask=A > 0)
    with pytest.raises(TypeError, match="normalized_shape is axis here"):
        mg.layer_norm(leaf(A), normalized_shape=(3,))
    with pytest.raises(TypeError, match="dim is axis here, keepdim is keepdims here"):
        leaf(A).sum(dim=1, keepdim=True)
    for call in (leaf(A).var, leaf(A).std):
        with pytest.raises(TypeError, match="unbiased is ddof here"):
            call(unbiased=False)
        with pytest.raises(TypeError, match="correction is ddof here"):
            call(correction=0)
    with pytest.raises(TypeError, match="dim0 is axis1 here, dim1 is axis2 here"):
        leaf(A).swapaxes(dim0=0, dim1=1)
    for wrong in (lambda: leaf(A).sum(unbiased=True), lambda: leaf(A).sum(color=1)):
        with pytest.raises(TypeError, match=r"unexpected keyword argument '[a-z]+'$"):
            wrong()
    with pytest.raises(TypeError, match=r"sum .*Tensor"):  # of the op itself
        leaf(A).sum(axis=leaf(1.0))


def test_a_transpose_of_two_of_three_axes_names_swapaxes():
    x = leaf(np.ones((2, 3, 4)))
    for call in (
        lambda: x.transpose(0, 1),
        lambda: mg.transpose(x, (1, 0)),
        lambda: x.transpose(0),
    ):
        with pytest.raises(
            ValueError, match=r"transpose of shapes \(2, 3, 4\): .*3 axes.*swapaxes"
        ):
            call()
    matrix = leaf(A)
    assert_array_equal(matrix.transpose(0, 1).data, A)  # as in NumPy
    assert_array_equal(matrix.swapaxes(0, 1).data, A.T)


# ----------------------------------------------------------------------------- the version


@pytest.mark.parametrize("package", [mg, ld], ids=["minigrad", "loradora"])
def test_the_version_is_that_of_what_is_installed(package, monkeypatch):
    asked = []
    monkeypatch.setattr(metadata, "version", lambda name: asked.append(name) or "1.2.3")
    assert package.__version__ == "1.2.3"
    assert asked == ["minigrad-loradora"]


@pytest.mark.parametrize("package", [mg, ld], ids=["minigrad", "loradora"])
def test_what_is_not_installed_has_no_version_and_says_so(package, monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(AttributeError, match=f"{package.__name__} is not installed with pip"):
        _ = package.__version__
    assert not hasattr(package, "__version__")


ASK_FOR_THE_VERSION = """
import sys
import numpy
before = "importlib.metadata" in sys.modules
import loradora, minigrad
assert ("importlib.metadata" in sys.modules) == before, "it takes longer than all the rest"
print(minigrad.__version__, loradora.__version__)
"""


def test_the_version_is_read_from_the_metadata_and_only_when_it_is_asked_for(tmp_path):
    info = tmp_path / "minigrad_loradora-98.7.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: minigrad-loradora\nVersion: 98.7\n"
    )
    paths = [str(tmp_path), str(Path(mg.__file__).parent.parent)]
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths}\n{ASK_FOR_THE_VERSION}"],
        capture_output=True,
        text=True,
    )
    assert (run.stdout.split(), run.stderr) == (["98.7", "98.7"], "")
