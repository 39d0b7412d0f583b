"""Whether the minigrad that Python finds is the one that belongs to loradora.

Other packages bring a module of that name, too.  One that comes first on the path hides ours.  One that
is installed into the same place writes its files over ours, and takes them along when it is uninstalled.
Without a check that is an error far from its cause, or none before the first gradient.
"""

from __future__ import annotations

from importlib.machinery import PathFinder
from importlib.util import find_spec
from typing import Any

#: The modules of minigrad, each with a name that is in ours and in nobody else's.
OURS = {
    "minigrad": "GradcheckError",
    "minigrad.hints": "attributes_of",
    "minigrad.operation": "has_rule",
    "minigrad.adding": "never_repeats",
    "minigrad.sums": "of_products",
    "minigrad.products": "product_over_rows",
    "minigrad.taylor": "_erf_into",
    "minigrad.ops": "nll_grad",
    "minigrad.engine": "ancestry",
    "minigrad.scopes": "at_once",
    "minigrad.tensor": "as_reals",
    "minigrad.foreign": "refusal",
    "minigrad.functional": "as_tensors",
    "minigrad.gradcheck": "gradgradcheck",
}


def check_minigrad() -> None:
    """Look into the files of minigrad, without running them.

    Raises
    ------
    ImportError
        If one is missing or is another's: with its place, and with what mends it.
    """
    for name, mark in OURS.items():
        module = _found(name)
        if module is None or module.origin is None:
            raise _not_ours(f"{name} is missing, as if another package had taken it along")
        if not _contains(module, mark):
            raise _not_ours(
                f"{module.origin} is another one's: it lies over ours, or before it on sys.path",
                first="remove or rename that, and ",
            )


def _found(name: str) -> Any:
    """Return the spec of a module of minigrad, or None."""
    try:
        package: Any = find_spec("minigrad")
    except ValueError:  # it is imported, and has no spec
        raise _not_ours("minigrad was imported from no file") from None
    if name == "minigrad":
        return package
    return PathFinder.find_spec(name, package.submodule_search_locations)


def _contains(module: Any, mark: str) -> bool:
    """Whether a name is in the file of a module, be that source or compiled, zipped or not."""
    try:
        return mark.encode() in module.loader.get_data(module.origin)
    except (OSError, AttributeError):  # in no file, where nobody writes over it
        return True


def _not_ours(reason: str, first: str = "") -> ImportError:
    """Return an error that says what mends it; the other package is named if pip can uninstall it."""
    from importlib.metadata import packages_distributions  # only now: it is slow to import

    others = sorted(set(packages_distributions().get("minigrad", [])) - {"minigrad-loradora"})
    if others:
        first = f"run pip uninstall {' '.join(others)}, and "
    return ImportError(
        f"loradora needs the minigrad that is installed with it, but {reason}. To mend it, {first}"
        "install minigrad-loradora again, from where you had it: "
        "pip install --force-reinstall --no-deps <wheel or folder>",
        name="minigrad",
    )
