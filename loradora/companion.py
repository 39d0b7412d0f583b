"""Whether the minigrad that Python finds is the one that belongs to loradora.

Other packages bring a module of the same name.  If one comes first on the path, it hides ours.  If one
is installed into the same place, it overwrites our files, and removes them when it is uninstalled.
Without a check, the error appears far from its cause, perhaps only at the first gradient.
"""

from __future__ import annotations

from importlib.machinery import PathFinder
from importlib.util import find_spec
from typing import Any

#: The modules of minigrad, each with a name that occurs in ours and in nobody else's.
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
        If one is missing or belongs to another package.  The message says where, and how to mend it.
    """
    for name, mark in OURS.items():
        module = _found(name)
        if module is None or module.origin is None:
            raise _not_ours(f"{name} is missing, as if another package had removed it")
        if not _contains(module, mark):
            raise _not_ours(
                f"{module.origin} belongs to another one: it has overwritten ours, or comes before it on "
                "sys.path",
                first="remove or rename that, and ",
            )


def _found(name: str) -> Any:
    """Return the spec of a module of minigrad, or None."""
    try:
        package: Any = find_spec("minigrad")
    except ValueError:  # it was imported without a spec
        raise _not_ours("minigrad was imported from no file") from None
    if name == "minigrad":
        return package
    return PathFinder.find_spec(name, package.submodule_search_locations)


def _contains(module: Any, mark: str) -> bool:
    """Whether the file of a module contains a name; it may be source or compiled, and zipped."""
    try:
        return mark.encode() in module.loader.get_data(module.origin)
    except (OSError, AttributeError):  # it is in no file, so nobody can have overwritten it
        return True


def _not_ours(reason: str, first: str = "") -> ImportError:
    """Return an error that says how to mend it, and names the other package if pip can uninstall it."""
    from importlib.metadata import packages_distributions  # imported here, because it is slow

    others = sorted(set(packages_distributions().get("minigrad", [])) - {"minigrad-loradora"})
    if others:
        first = f"run pip uninstall {' '.join(others)}, and "
    return ImportError(
        f"loradora needs the minigrad that is installed with it, but {reason}. To mend it, {first}"
        "install minigrad-loradora again from where you got it: "
        "pip install --force-reinstall --no-deps <wheel or folder>",
        name="minigrad",
    )
