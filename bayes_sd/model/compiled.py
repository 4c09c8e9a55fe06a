"""Compilation for nutpie without compiling twice what PyTensor has compiled already.

nutpie links all machine code of a model anew into the functions that it calls, once more optimized.
Here they call the cached code of PyTensor by its address.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

from bayes_sd.model.priors import TOLD

if TYPE_CHECKING:
    import pymc as pm

# Both take time and speed up no draw: multiplying products out, and writing constants into the
# code, which then must be compiled again for other data.
SKIPPED_REWRITES = ("local_greedy_distributor", "local_inline_composite_constants")
_DOUBLES = "CPointer(double)"
_LOGP = f"int64(uint64, {_DOUBLES}, {_DOUBLES}, {_DOUBLES}, voidptr)"
_EXPAND = f"int64(uint64, uint64, {_DOUBLES}, {_DOUBLES}, voidptr)"


def compile_nutpie(model: "pm.Model", initial: Mapping, fixed: Iterable[str] | None = None) -> Any:
    """Compile for nutpie with the data named by `fixed` frozen, all by default: they fold much."""
    import nutpie
    from pymc.model.transform.optimization import freeze_dims_and_data
    from pytensor import config
    from pytensor.compile.mode import predefined_modes
    from pytensor.graph import FunctionGraph, rewrite_graph
    from pytensor.graph.rewriting.basic import MergeOptimizer

    # Frozen here, not in nutpie, which knows all data or none.
    names = [v.name for v in model.data_vars] if fixed is None else fixed
    frozen = freeze_dims_and_data(model, data=[n for n in names if not n.startswith(TOLD)])
    # Code called by address cannot raise; what breaks a bound is not finite, so a divergence.
    frozen.check_bounds = False
    # Chains start apart on the axes that `Axes` finds, so nothing is jittered here.
    how = {"freeze_model": False, "initial_points": dict(initial), "jitter_rvs": set()}
    mode = predefined_modes["NUMBA"].excluding(*SKIPPED_REWRITES)  # nutpie asks for it by name
    called: Any = {"_make_c_logp_func": _logp_function, "_make_c_expand_func": _expand_function}

    # PyMC copies what its terms share; differentiated apart, the copies' gradients stay apart.
    def merged(graph: Any, **how: Any) -> Any:
        return once(rewrite_graph(once(graph), **how))

    def once(graph: Any) -> Any:
        fgraph = FunctionGraph(outputs=[graph], clone=False)
        MergeOptimizer().rewrite(fgraph)
        return fgraph.outputs[0]

    # With fast math, code from the cache rounds sums otherwise: other draws.
    with (
        patch.dict(predefined_modes, NUMBA=mode),
        patch.multiple("nutpie.compile_pymc", **called),
        patch("pytensor.graph.rewrite_graph", merged),
        config.change_flags(numba__fastmath=False),
    ):
        return nutpie.compile_pymc_model(frozen, **how)


def _logp_function(n: int, function: Any, user_data: Any, keys: list[str], shared: dict) -> Any:
    """What nutpie calls for a log density and its gradient, and its signature."""
    import numba

    call = _by_address(function, user_data, keys, shared)

    def logp(size: Any, x_p: Any, gradient_p: Any, logp_p: Any, user_data_p: Any) -> int:
        value, gradient = call(numba.carray(x_p, (n,)), user_data_p)
        logp_p[0] = value[()]
        finite = np.isfinite(value[()])
        for i in range(n):
            gradient_p[i] = gradient[i]
            finite &= np.isfinite(gradient[i])
        return 0 if finite else 3  # a divergence

    return logp, _LOGP


def _expand_function(
    n: int, n_expanded: int, function: Any, user_data: Any, keys: list[str], shared: dict
) -> Any:
    """What nutpie calls for all variables of a draw, and its signature."""
    import numba

    call = _by_address(function, user_data, keys, shared)

    def expand(size: Any, all_size: Any, x_p: Any, all_p: Any, user_data_p: Any) -> int:
        (values,) = call(numba.carray(x_p, (n,)), user_data_p)
        for i in range(n_expanded):
            all_p[i] = values[i]
        return 0

    return expand, _EXPAND


def _by_address(function: Any, user_data: Any, keys: list[str], shared: dict) -> Any:
    """A compiled function of a point and of shared data, as one of a point and of `user_data`."""
    import numba
    from numba.core.cgutils import create_struct_proxy, voidptr_t
    from numba.extending import intrinsic
    from nutpie.compile_pymc import make_extraction_fn

    types: Any = numba.types
    arrays = [types.Array(types.float64, 1, "C"), *(numba.typeof(shared[key]) for key in keys)]
    alike = len(set(arrays)) == 1
    star = types.StarArgUniTuple(arrays[0], len(arrays)) if alike else types.StarArgTuple(arrays)
    function.compile((star,))
    code = function.overloads[(star,)]
    kind = types.FunctionType(code.signature)
    address = code.library.get_pointer_to_function(code.fndesc.llvm_cfunc_wrapper_name)

    def generate(context: Any, builder: Any, *_: Any) -> Any:
        found = create_struct_proxy(kind)(context, builder)
        found.c_addr = builder.inttoptr(context.get_constant(types.intp, address), voidptr_t)
        return found._getvalue()

    compiled: Any = intrinsic(lambda typing: (kind(), generate))

    @numba.njit
    def call(*values: Any) -> Any:
        return compiled()(values)

    return make_extraction_fn(call, shared, keys, user_data.dtype)
