"""Names from other libraries, and what to write here instead.

The tables answer in three cases: a Tensor, a Module, an adapted model or a package does not have an
attribute; a function of NumPy would lose a gradient; a keyword is PyTorch's.  A row may serve several
names, and ``{name}`` stands for the one that was asked for.  An answer is code, perhaps with a note.  In
it ``x`` and ``y`` are Tensors, and ``mg`` and ``ld`` are the packages.  A name that is in no table gets
Python's own message.

Nothing is looked up before something has failed.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Container, Iterable
from types import ModuleType
from typing import Any, ParamSpec, TypeAlias, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

#: What to write, by the name that somebody tried.
Answers: TypeAlias = dict[str, str]


def _by_name(rows: dict[str, str]) -> Answers:
    """Return a row for each name, in which that name stands for ``{name}``."""
    return {name: row.format(name=name) for names, row in rows.items() for name in names.split()}


# ----------------------------------------------------------------------------- the table

_ADD_IT = "mg.op  # there is no {name} yet: one block makes it, see help(mg.op)"
_LAYER = "ld.Module  # there is no {name} yet: a class with a forward is one, see help(ld.Module)"
_CONSTANT = "np.{name}(x.data)  # as a number: its gradient is 0 wherever it has one"

#: Functions that are here under another name.
SYNONYMS = _by_name(
    {
        "subtract": "sub",
        "multiply": "mul",
        "divide true_divide": "div",
        "power": "pow",
        "negative": "neg",
        "absolute": "abs",
        "dot mm bmm mv linalg.matmul": "matmul",
        "linalg.norm linalg.vector_norm": "norm",
        "amax": "max",
        "amin": "min",
        "clamp": "clip",
        "cat concat": "concatenate",
        "view view_as reshape_as": "reshape",
        "ravel": "flatten",
        "permute permute_dims": "transpose",
        "matrix_transpose swapdims t": "swapaxes",
        "unsqueeze": "expand_dims",
        "expand expand_as": "broadcast_to",
    }
)

#: Functions that are composed of those that are here.
COMPOSITIONS = _by_name(
    {
        "square": "x * x",
        "fabs": "abs(x)",
        "clamp_min": "mg.maximum(x, y)",
        "clamp_max": "mg.minimum(x, y)",
        "reciprocal": "1 / x",
        "rsqrt": "1 / mg.sqrt(x)",
        "log1p": "mg.log(1 + x)  # loses digits where x is tiny",
        "log2": "mg.log(x) / np.log(2)",
        "expm1": "mg.exp(x) - 1  # loses digits where x is tiny",
        "erfc": "1 - mg.erf(x)  # loses digits where x is large",
        "silu": "x * mg.sigmoid(x)",
        "leaky_relu": "mg.where(x > 0, x, 0.01 * x)",
        "softplus": "mg.logsumexp(mg.stack([x, np.zeros_like(x)]), axis=0)",
        "add.reduce": "x.sum(axis=0)",
        "maximum.reduce": "x.max(axis=0)",
        "minimum.reduce": "x.min(axis=0)",
        "vecdot": "(x * y).sum(axis=-1)",
        "vdot": "(x * y).sum()",
        "tensordot": "(x * y).sum()  # over all axes of two matrices; over one it is x @ y",
        "einsum": "(x * y).sum(axis=-1)  # '...i,...i'; of matrices, x @ y is 'ij,jk'",
        "inner": "x @ y.T  # of vectors or matrices",
        "outer": "x.reshape(-1, 1) * y.reshape(1, -1)",
        "prod": "functools.reduce(mg.mul, x)  # along the first axis",
        "cumsum": "np.tri(len(x), dtype=x.dtype) @ x  # along the first axis",
        "moveaxis movedim": "x.transpose(axes)  # all of the axes, in their new order",
        "vstack row_stack": "mg.concatenate([x, y])  # of matrices; vectors: mg.stack([x, y])",
        "hstack": "mg.concatenate([x, y], axis=-1)  # of vectors or matrices",
        "column_stack": "mg.stack([x, y], axis=1)  # of vectors; matrices: mg.concatenate, axis=1",
        "split array_split": "x[:n], x[n:]  # at row n",
        "unbind unstack": "list(x)  # along the first axis",
        "tile": "mg.concatenate([x] * n, axis=-1)",
        "repeat repeat_interleave": "x[np.repeat(range(len(x)), n)]  # each row; torch's repeat is tile",
        "flip flipud": "x[::-1]  # along the first axis",
        "roll": "mg.concatenate([x[-n:], x[:-n]])  # along the first axis",
        "sort msort": "x[np.argsort(x)]  # of a vector",
        "topk": "x[np.argsort(-x)[:n]]  # of a vector",
        "gather take_along_axis": "x[np.arange(len(x)), labels]  # of a matrix: one entry of each row",
        "take": "x.reshape(-1)[labels]  # of the flat array; rows are x[labels]",
        "index_select": "x[labels]  # along the first axis",
        "embedding": "x[labels]  # of a matrix: its rows",
        "masked_fill": "mg.where(mask, n, x)",
        "scaled_dot_product_attention": (
            "mg.softmax(x @ y.mT / len(x.T) ** 0.5) @ y  # of matrices; softmax takes where=mask"
        ),
        "normalize": "x / mg.norm(x, axis=-1, keepdims=True)",
        "l1_loss": "abs(x - y).mean()",
        "nll_loss": "-x[np.arange(len(x)), labels].mean()  # of a matrix, log_softmax(logits)",
        "binary_cross_entropy": "-(y * mg.log(x) + (1 - y) * mg.log(1 - x)).mean()  # 0 < x < 1",
        "one_hot": "np.eye(n)[labels]",
        "eq": "x == y",
        "equal": "x == y  # entry by entry; np.array_equal(x, y) asks for all at once",
        "ne not_equal": "x != y",
        "lt less": "x < y",
        "le less_equal": "x <= y",
        "gt greater": "x > y",
        "ge greater_equal": "x >= y",
        "sin cos tan sinh cosh arcsin arccos arctan asin acos atan arctan2 atan2": _ADD_IT,
        "cumprod cummax median quantile trace diag tril triu": _ADD_IT,
        "sign round rint floor ceil trunc": _CONSTANT,
        "argmin argsort any all isnan isinf isfinite nonzero count_nonzero": "np.{name}(x)",
        "allclose isclose array_equal": "np.{name}(x, y)",
    }
)

#: What else a Tensor of PyTorch, or an array, has.
OF_TENSORS = _by_name(
    {
        "to type": "x.astype(dtype)  # devices: there is one, the CPU",
        "type_as": "x.astype(y.dtype)",
        "device": "'cpu'  # the only one",
        "cuda cpu contiguous": "x  # on the CPU, and in order: x itself will do",
        "clone copy": "mg.Tensor(x.data.copy())  # of a leaf; the result of an operation never changes",
        "float": "x.astype(np.float32)",
        "double": "x.astype(np.float64)",
        "half": "x.astype(np.float16)",
        "long int": "x.data.astype(int)  # an array: a Tensor holds floating-point numbers",
        "bool": "x.data != 0",
        "dim ndimension": "x.ndim",
        "nelement": "x.size",
        "is_leaf": "x.op is None",
        "grad_fn": "x.op",
        "retain_grad register_hook": "mg.grad(loss, x)  # of results, too, not of leaves alone",
        "zero_grad": "optimizer.zero_grad()  # or model.zero_grad()",
        "step": "optimizer.step()",
        "values": "x.max(axis)  # the values alone",
        "indices": "x.argmax(axis)",
        "fill fill_": "x.data = np.full_like(x.data, n)  # of a leaf",
        "zero_": "x.data = np.zeros_like(x.data)  # of a leaf",
        "copy_": "x.data = y.data  # of a leaf",
        "normal_": "x.data = rng.normal(size=x.shape)  # of a leaf",
        "uniform_": "x.data = rng.uniform(size=x.shape)  # of a leaf",
        "scatter scatter_": "mg.where(mask, y, x)  # y in the places of the mask",
        "requires_grad_": "x.requires_grad = True",
    }
)

#: What else is in torch, or in numpy.
OF_MINIGRAD = _by_name(
    {
        "as_tensor from_numpy asarray array Variable Parameter": "mg.Tensor(data)",
        "zeros ones empty eye arange": "mg.Tensor(np.{name}(n))",
        "zeros_like ones_like": "mg.Tensor(np.{name}(x))",
        "full": "mg.Tensor(np.full(n, 1.0))",
        "full_like": "mg.Tensor(np.full_like(x.data, n))",
        "linspace": "mg.Tensor(np.linspace(0, 1, n))",
        "randn normal": "mg.Tensor(rng.normal(size=n))",
        "rand uniform": "mg.Tensor(rng.uniform(size=n))",
        "randint": "rng.integers(10, size=n)  # an array: a Tensor holds floating-point numbers",
        "manual_seed seed random": "rng = np.random.default_rng(0)  # for all that takes an rng",
        "float16 float32 float64 int32 int64 argmax": "np.{name}",
        "device": "'cpu'  # the only one: leave it out",
        "inference_mode": "mg.no_grad()",
        "enable_grad set_grad_enabled": "mg.no_grad()  # for a with block: outside they are enabled",
        "dropout": "ld.Dropout(0.5)(x)",
        "autograd": "mg.grad(loss, [x, y])",
        "is_tensor": "isinstance(x, mg.Tensor)",
        "nn optim": "ld.{name}",
        "Module Linear Embedding LayerNorm": "ld.{name}",
        "save": "ld.save_model(file, model)",
        "load": "ld.load_model(file, model)",
    }
)

#: What else a module of PyTorch has, or a model of Keras or scikit-learn.
OF_MODULES = _by_name(
    {
        "to cuda cpu": "model  # there is one device, the CPU",
        "device": "'cpu'  # the only one",
        "dtype": "model.parameters()[0].dtype",
        "half float double": "ld.MLP([2, 3], dtype=np.float16)  # or float32, float64, when it is made",
        "apply": "[print(module) for module in model.modules()]",
        "named_children": "dict(model.named_parts())",
        "get_submodule": "dict(model.named_modules())[path]",
        "register_parameter": "self.weight = mg.Tensor(data, requires_grad=True)",
        "register_buffer buffers": "self.mean = mg.Tensor(data)  # one that requires no gradient",
        "add_module register_module": "self.layer = ld.Linear(2, 3)  # attributes are found",
        "append": "ld.Sequential(model, ld.ReLU())",
        "num_parameters": "sum(p.size for p in model.parameters())",
        "freeze": "model.requires_grad_(False)",
        "summary": "print(model)",
        "predict": "model(x)",
        "fit": "list(ld.fit(model, data, labels, optimizer=optimizer, steps=n, rng=0))",
        "evaluate score": "ld.evaluate(model, data, labels)",
        "backward": "loss.backward()",
        "save save_weights": "ld.save_model(file, model)",
        "load load_weights": "ld.load_model(file, model)",
    }
)

#: What else a PeftModel of PEFT has.
OF_ADAPTED_MODELS = OF_MODULES | _by_name(
    {
        "merge_adapter merge": "model.merge_and_unload()  # a new model: this one stays as it is",
        "unmerge_adapter unmerge": "model  # merging has changed nothing in it",
        "enable_adapter_layers enable_adapters": "model  # they are off in a with block alone",
        "model": "model.base_model",
        "disable_adapter_layers disable_adapters": "model.disable_adapter()  # for a with block",
        "active_peft_config": "model.peft_config[model.active_adapter]",
        "num_parameters": "model.get_nb_trainable_parameters()",
        "set_requires_grad": "model.set_adapter(name)",
        "get_model_status get_layer_status": "print(model)",
        "save": "model.save_pretrained(folder)  # or model.save_adapter(file)",
        "load": "ld.PeftModel.from_pretrained(base, file)",
    }
)

#: What else is in torch.nn, torch.optim and peft.
OF_LORADORA = _by_name(
    {
        "Adam": "ld.AdamW(params, weight_decay=0.0)",
        "RMSprop Adagrad Adamax NAdam LBFGS": "ld.AdamW(params)  # or a subclass of ld.optim.Optimizer",
        "CrossEntropyLoss": "mg.cross_entropy(logits, labels)",
        "MSELoss": "mg.mse_loss(x, y)",
        "L1Loss": COMPOSITIONS["l1_loss"],
        "NLLLoss": COMPOSITIONS["nll_loss"],
        "BCELoss": COMPOSITIONS["binary_cross_entropy"],
        "SiLU": COMPOSITIONS["silu"],
        "LeakyReLU": COMPOSITIONS["leaky_relu"],
        "Softplus": COMPOSITIONS["softplus"],
        "Softmax": "mg.softmax(x, axis=-1)",
        "LogSoftmax": "mg.log_softmax(x, axis=-1)",
        "Parameter": "mg.Tensor(data, requires_grad=True)",
        "ModuleList ParameterList": "[ld.Linear(2, 3), ld.Linear(3, 2)]  # lists of parts are walked",
        "ModuleDict ParameterDict": "dict(first=ld.Linear(2, 3))  # dicts of parts are walked",
        "Identity": "ld.Sequential()",
        "RMSNorm BatchNorm1d BatchNorm2d Conv2d": _LAYER,
        "MultiheadAttention": "ld.MultiHeadAttention(8, 2)  # its mask is True where a token may look",
        "TransformerDecoderLayer TransformerEncoderLayer": "ld.DecoderLayer(8, 2)  # norms come first",
        "TransformerDecoder TransformerEncoder": "[ld.DecoderLayer(8, 2) for _ in range(4)]",
        "functional": "mg",
        "Tensor tensor no_grad grad cross_entropy mse_loss": "mg.{name}",
        "DoraConfig DoRAConfig": "ld.LoraConfig(use_dora=True)",
        "PeftConfig": "ld.LoraConfig.from_dict(options)  # or ld.LoraConfig.from_pretrained(folder)",
        "get_peft_config": "ld.LoraConfig.from_dict(options)",
        "LoraModel inject_adapter_in_model": "ld.get_peft_model(base, config)",
        "PeftModelForCausalLM PeftModelForSequenceClassification": "ld.get_peft_model(base, config)",
        "AutoPeftModel AutoPeftModelForCausalLM": "ld.PeftModel.from_pretrained(base, file)",
        "load_peft_weights": "ld.PeftModel.from_pretrained(base, file)",
        "prepare_model_for_kbit_training": "base  # its numbers are never rounded to a few bits",
        "TaskType": "ld.LoraConfig(task_type='SEQ_CLS')  # a string",
        "clip_grad_norm": "ld.clip_grad_norm_(params, 1.0)",
        "clip_grad_value_": "p.grad = np.clip(p.grad, -1, 1)  # of each p in model.parameters()",
        "lr_scheduler": "ld.linear_decay  # a schedule for ld.fit",
        "LambdaLR StepLR": "lambda progress: 0.1 ** int(3 * progress)  # any such function is a schedule",
        "LinearLR": "ld.warmup(0.1, then=ld.optim.constant)  # a schedule for ld.fit",
        "get_linear_schedule_with_warmup": "ld.warmup(0.1)  # a schedule for ld.fit",
        "get_cosine_schedule_with_warmup": "ld.warmup(0.1, then=ld.cosine_decay)  # for ld.fit",
        "CosineAnnealingLR": "ld.cosine_decay  # a schedule for ld.fit",
        "Trainer DataLoader": "list(ld.fit(model, data, labels, optimizer=optimizer, steps=n, rng=0))",
        "save": "ld.save_model(file, model)",
        "load": "ld.load_model(file, model)",
        "set_seed manual_seed": "rng = np.random.default_rng(0)  # for all that takes an rng",
    }
)

#: The keywords of PyTorch.
KEYWORDS = _by_name(
    {
        "dim dims": "axis",
        "keepdim": "keepdims",
        "correction unbiased": "ddof",
        "dim0": "axis1",
        "dim1": "axis2",
        "mask attn_mask": "where",
        "normalized_shape": "axis",
    }
)


# ----------------------------------------------------------------------------- how it is asked


def own_name(name: str) -> str | None:
    """Return what minigrad calls a function of NumPy's or PyTorch's, None if it has none."""
    import minigrad  # by now all of it is there

    own = SYNONYMS.get(name, name)
    there = vars(minigrad).get(own)
    return own if callable(there) and not isinstance(there, ModuleType) else None


def of_function(name: str) -> str | None:
    """Return what to use here for a function of NumPy's or PyTorch's, None if no table has it."""
    own = own_name(name)
    return f"mg.{own}(...)" if own else COMPOSITIONS.get(name)


def of_tensor(name: str) -> str | None:
    """Return what to use instead of a method or an attribute of a tensor or an array."""
    import minigrad

    own = SYNONYMS.get(name, name)
    found = f"x.{own}(...)" if hasattr(minigrad.Tensor, own) else None
    return found or OF_TENSORS.get(name) or of_function(name) or _of_change(name)


def _of_change(name: str) -> str | None:
    """Return what to use instead of a function that changes a tensor: its name ends in "_" in PyTorch."""
    from minigrad.ops import OPS

    function = name.removesuffix("_")
    if function == name or not any(function in names for names in (OPS, SYNONYMS, COMPOSITIONS)):
        return None
    result = of_tensor(function) or ""
    made_here = not result.startswith("mg.op ")
    return f"x = {_code(result)}  # nothing is changed in place" if made_here else result


def of_minigrad(name: str) -> str | None:
    """Return what to use instead of a name that ``minigrad`` does not have."""
    return OF_MINIGRAD.get(name) or of_function(name)


def of_module(name: str) -> str | None:
    """Return what to use instead of an attribute that a Module does not have."""
    return OF_MODULES.get(name)


def of_adapted_model(name: str) -> str | None:
    """Return what to use instead of an attribute that a PeftModel does not have."""
    return OF_ADAPTED_MODELS.get(name)


def of_loradora(name: str) -> str | None:
    """Return what to use instead of a name that ``loradora`` does not have."""
    return OF_LORADORA.get(name) or of_function(name)


def kind(value: object) -> str:
    """Return how a message names the class of a value: with its module, unless it is ours or built in.

    PyTorch has a Tensor, too, and PEFT a LoraConfig.

    >>> from fractions import Fraction
    >>> kind(0.5), kind(Fraction(1, 2))
    ('float', 'fractions.Fraction')
    """
    cls = type(value)
    known = cls.__module__.partition(".")[0] in ("builtins", "minigrad", "loradora")
    return cls.__qualname__ if known else f"{cls.__module__}.{cls.__qualname__}"


def _code(answer: str) -> str:
    return answer.partition("  #")[0]


def said(answer: str) -> str:
    """Return an answer as a part of a message."""
    code, _, note = answer.partition("  # ")
    return f"use {code}" + (f" ({note})" if note else "")


def missing(owner: object, name: str, answer: Callable[[str], str | None]) -> Any:
    """Raise AttributeError for an attribute that was not found, with the answer if there is one.

    This is for ``__getattr__``.  Python also calls it if a property has raised AttributeError, and that
    error is raised again.  Names such as ``__len__`` are asked for often, so they are refused first.
    """
    if name.startswith("__"):
        raise AttributeError(f"{type(owner).__name__!r} object has no attribute {name!r}")
    try:
        return object.__getattribute__(owner, name)
    except AttributeError as error:
        known = name.startswith("_") or hasattr(type(owner), name)
        found = None if known else answer(name)
        if found is None:
            raise
        raise AttributeError(f"{error}: {said(found)}") from None


def attributes_of(package: str, answer: Callable[[str], str | None]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package: it knows ``__version__``, and answers for the rest."""

    def attribute(name: str) -> Any:
        if name == "__version__":
            return _version(package)
        message = f"module {package!r} has no attribute {name!r}"
        found = None if name.startswith("_") else answer(name)
        if found:
            raise AttributeError(f"{message}: {said(found)}")
        # Python then looks for a similar name in the module
        raise AttributeError(message, name=name, obj=sys.modules[package])

    return attribute


def _version(package: str) -> str:
    """Return the version that is installed, of both packages together."""
    from importlib import metadata  # which takes longer than all the rest

    try:
        return metadata.version("minigrad-loradora")
    except metadata.PackageNotFoundError:
        raise AttributeError(
            f"{package} is not installed with pip, and only what is installed has a version"
        ) from None


def of_keywords(given: Iterable[str], own: Container[str]) -> str:
    """Return what a function that has the keywords ``own`` calls those of PyTorch's among ``given``."""
    theirs = [name for name in given if name not in own and KEYWORDS.get(name) in own]
    return ": " + ", ".join(f"{name} is {KEYWORDS[name]} here" for name in theirs) if theirs else ""


def keywords(function: Callable[P, T]) -> Callable[P, T]:
    """Return ``function`` with a hint in its error if it was called with a keyword of PyTorch's."""
    own = inspect.signature(function).parameters

    @functools.wraps(function)
    def called(*args: P.args, **params: P.kwargs) -> T:
        try:
            return function(*args, **params)
        except TypeError as error:
            hint = of_keywords(params, own)
            if not hint:
                raise
            raise TypeError(f"{error}{hint}") from None

    return called


class NotAFunction(ModuleType):
    """The module ``minigrad.tensor``, which has the name of a function of PyTorch's."""

    def __call__(self, *args: Any, **params: Any) -> None:
        """Raise TypeError with the name of the class."""
        raise TypeError(f"{self.__name__} is a module: use mg.Tensor(data)")
