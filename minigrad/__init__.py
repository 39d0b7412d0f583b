"""minigrad: a small reverse-mode automatic differentiation engine on NumPy arrays.

Read it in this order: ``operation`` (what an op is), ``ops`` (the derivatives), ``engine`` (the chain
rule), ``tensor`` (the bookkeeping), ``functional`` (functions made of operations), ``gradcheck`` (the
check by finite differences).  The other modules help these; each says in its first line what it is about.
"""

import builtins
import types
import typing

from minigrad import hints as hints
from minigrad import ops as ops
from minigrad.functional import concatenate as concatenate
from minigrad.functional import cross_entropy as cross_entropy
from minigrad.functional import expand_dims as expand_dims
from minigrad.functional import flatten as flatten
from minigrad.functional import gelu as gelu
from minigrad.functional import logsumexp as logsumexp
from minigrad.functional import mse_loss as mse_loss
from minigrad.functional import squeeze as squeeze
from minigrad.functional import stack as stack
from minigrad.functional import std as std
from minigrad.gradcheck import GradcheckError as GradcheckError
from minigrad.gradcheck import gradcheck as gradcheck
from minigrad.gradcheck import gradgradcheck as gradgradcheck
from minigrad.ops import *
from minigrad.tensor import Tensor as Tensor
from minigrad.tensor import grad as grad
from minigrad.tensor import is_grad_enabled as is_grad_enabled
from minigrad.tensor import no_grad as no_grad

if typing.TYPE_CHECKING:  # type checkers cannot evaluate __all__, and see all names that are public
    __version__: str
else:
    __getattr__ = hints.attributes_of(__name__, hints.of_minigrad)

    #: What ``from minigrad import *`` brings.  Not the modules, and not sum, max, min, abs and pow, which
    #: would hide Python's own.
    __all__ = sorted(
        name
        for name, what in globals().items()
        if not (name[0] == "_" or isinstance(what, types.ModuleType) or hasattr(builtins, name))
    )

del builtins, types, typing
