"""Axes on which a posterior is about round, so that a sampler takes few steps from the first on.

Near its mode a log density has the curvature ``H``. On axes `y` with ``x = mode + H^(-1/2) y`` all
directions are about as wide. A sampler that has to learn them spends most of its gradients on that
where there are many runs.
"""

import ctypes
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import llvmlite.ir as ir
import numba
import numpy as np
from numba import types
from numba.extending import intrinsic
from nutpie.compile_pymc import address_as_void_pointer

from bayes_sd.model.arrow import Arrow, Blocks, Gradient, Root, sharp_root
from bayes_sd.model.priors import TOLD

NEWTON = 2  # steps from where the search for a mode ends: curvature beside it is another
ROUNDS = 3  # of scales and of what the runs tell
MOST_TOLD = 0.95  # share, of an effect: no mode knows its tails
USUAL_WEIGHT = 4.0  # of where a log scale starts: 0.5^-2, of its prior
JITTER = 1.5  # where chains start, in standard deviations to both sides
MOST_STEPS = 1500  # to the mode
TINY = 1e-12


def gradient(compiled: Any) -> Gradient:
    """Log density and its gradient, of a model compiled for nutpie."""
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_uint64, *[ctypes.c_void_p] * 4)
    call, data = kind(compiled.compiled_logp_func.address), compiled.user_data

    def of(x: np.ndarray) -> tuple[float, np.ndarray]:
        x, slope, value = np.ascontiguousarray(x), np.empty(len(x)), np.empty(1)
        addresses = (a.ctypes.data for a in (x, slope, value, data))
        failed = call(len(x), *addresses)
        return (-np.inf if failed else float(value[0])), slope

    return of


def expanded(compiled: Any, x: np.ndarray) -> np.ndarray:
    """All variables of the model at a point."""
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_uint64] * 2, *[ctypes.c_void_p] * 3)
    values = np.empty(compiled.n_expanded)
    addresses = (a.ctypes.data for a in (np.ascontiguousarray(x), values, compiled.user_data))
    kind(compiled.compiled_expand_func.address)(len(x), len(values), *addresses)
    return values


def mode(of: Gradient, start: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Where the density is highest, of the variables `free`."""
    from scipy.optimize import minimize

    x = start.copy()

    def cost(values: np.ndarray) -> tuple[float, np.ndarray]:
        x[free] = values
        value, slope = of(x)
        # Far away there may be no number; a search along a line then turns back.
        return (-value, -slope[free]) if np.isfinite(value) else (1e300, np.zeros(len(values)))

    how = {"maxiter": MOST_STEPS, "maxcor": 30}
    x[free] = minimize(cost, start[free], jac=True, method="L-BFGS-B", options=how).x
    return x


class Level(NamedTuple):
    """Where the axes and the scales of a level's effects are, and how much the runs tell of them.

    Shares are those of `Centred`: (effect, member).
    """

    values: slice
    axes: slice
    scales: slice
    share: np.ndarray

    @classmethod
    def of(cls, compiled: Any) -> "dict[str, Level]":
        """Levels whose scales are sampled, by the names of their shares."""
        places = dict(zip(*compiled.shape_info[:2], strict=True))
        found = {}
        for name, key in ((str(v.name), key) for v, key in compiled.shared_var_keys.items()):
            if name.startswith(TOLD) and f"scatter_{name.removeprefix(TOLD)}_log__" in places:
                level, share = name.removeprefix(TOLD), compiled.shared_data[key]
                at = (f"log_{level}", f"log_{level}_centred__", f"scatter_{level}_log__")
                values, axes, scales = (places[place] for place in at)
                found[name] = cls(values, axes, scales, share)
        return found

    def means(self, x: np.ndarray, everything: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values of the effects, and what they scatter about."""
        c, sd = self.share, np.exp(x[self.scales])[:, None]
        value, axis = (each.reshape(c.shape) for each in (everything[self.values], x[self.axes]))
        return value, (value - sd ** (1 - c) * axis) / (1 - c * sd ** (1 - c))


class Axes(NamedTuple):
    """Axes `y` of ``x = origin + root y``; and the data of `Centred`.

    Scales of effects are held while the mode is looked for, and then set to what the effects say:
    where both are free, the density of a scale is highest far below what the runs say of it.
    """

    origin: np.ndarray
    root: Root
    told: dict[str, np.ndarray]

    @classmethod
    def of(
        cls, compiled: Any, systems: Mapping[str, np.ndarray], scales: Mapping | None = None
    ) -> "Axes":
        """Round ones, of a model compiled for nutpie; `systems` as in `Blocks.of`.

        `scales` are logs of the scales of effects, by level; else the mode says them.
        """
        free, blocks = np.ones(compiled.n_dim, bool), Blocks.of(compiled, systems)
        for name, place in zip(*compiled.shape_info[:2], strict=True):
            if name.startswith("scatter_") and place.stop <= compiled.n_dim:
                free[place] = False
        told: dict[str, np.ndarray] = {}
        x = mode(gradient(compiled), np.asarray(compiled.initial_point_func(0), float), free)
        for _ in range(ROUNDS if Level.of(compiled) else 0):
            x, told = _estimated(compiled, x, free, blocks, scales or {})
            compiled = compiled.with_data(**told)
            x = mode(gradient(compiled), x, free)
        of = gradient(compiled)
        for _ in range(NEWTON):
            root = Arrow.of(of, x, blocks).root(free)
            better = x + root.moved(root.along(of(x)[1]))
            x = better if of(better)[0] > of(x)[0] else x
        return cls(x, sharp_root(of, x, blocks), told)

    def turned(self, compiled: Any) -> Any:
        """A model compiled for nutpie on these axes; give it other data before, not after."""
        compiled = compiled.with_data(**self.told)
        blocks, roots, carried = self.root
        order, sizes = np.concatenate([blocks.shared, *blocks.systems]), [len(r) for r in roots]
        # All blocks in one array, and what is carried in another, empty without systems.
        flat = (np.concatenate([np.empty(0), *(x.ravel() for x in xs)]) for xs in (roots, carried))
        arrays = (compiled.user_data, self.origin, order, np.array(sizes), *flat)
        functions = compiled.compiled_logp_func, compiled.compiled_expand_func
        held = compiled, arrays  # kept by `initial`, as their addresses are used
        addresses = [f.address for f in functions] + [a.ctypes.data for a in arrays]

        def initial(seed: Any) -> np.ndarray:
            return np.random.default_rng(seed).uniform(-JITTER, JITTER, len(held[1][1]))

        return replace(
            compiled,
            compiled_logp_func=_logp,
            compiled_expand_func=_expand,
            user_data=np.array([*addresses, len(sizes)], np.uint64),
            initial_point_func=initial,
        )


def _estimated(
    compiled: Any, x: np.ndarray, free: np.ndarray, blocks: Blocks, scales: Mapping
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Scales of effects that their values at `x` make probable, and shares that the runs tell."""
    bent, at, x = Arrow.of(gradient(compiled), x, blocks), expanded(compiled, x), x.copy()
    variance, told = bent.root(free).variance, {}
    for name, level in Level.of(compiled).items():
        value, mean = level.means(x, at)
        sd = np.exp(x[level.scales])[:, None]
        moved = sd ** (2 - 2 * level.share)  # squared, of a value with its axis
        spread = variance[level.axes].reshape(value.shape) * moved
        alone = bent.diagonal[level.axes].reshape(value.shape) / moved
        known = np.clip(1 - spread / sd**2, 0.0, 1.0).sum(axis=1)  # so many effects in all
        seen = np.log((((value - mean) ** 2).sum(axis=1) + TINY) / (known + TINY)) / 2
        scale = (2 * known * seen + USUAL_WEIGHT * x[level.scales]) / (2 * known + USUAL_WEIGHT)
        scale = scales.get(name, scale)
        by_runs = np.maximum(alone - sd**-2, 0.0)
        x[level.scales], sd = scale, np.exp(scale)[:, None]
        told[name] = share = np.minimum(by_runs / (by_runs + sd**-2), MOST_TOLD).round(2)
        x[level.axes] = (share * mean + (value - mean) * sd ** (share - 1)).ravel()
    return x, told


def _call(typing: Any, address: Any, a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
    """Call the C function at an address with five integers or addresses."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        whole = ir.IntType(64)
        function = ir.FunctionType(whole, [whole] * 5).as_pointer()
        return builder.call(builder.inttoptr(values[0], function), values[1:])

    return types.int64(*[types.uint64] * 6), generate


_called: Any = intrinsic(_call)


@numba.njit
def _array(address: Any, n: Any, kind: Any) -> Any:
    return numba.carray(address_as_void_pointer(address), (n,), kind)


@numba.njit
def _held(n: Any, data: Any) -> Any:
    """Addresses of the model's functions and data, and the origin and root of the axes."""
    held = _array(data, 9, np.uint64)
    sizes = _array(held[5], held[8], np.int64)
    shared = sizes[0]
    root = _array(held[6], (sizes**2).sum(), np.float64)
    carried = numba.carray(address_as_void_pointer(held[7]), (n - shared, shared), np.float64)
    origin, order = _array(held[3], n, np.float64), _array(held[4], n, np.int64)
    return held, origin, order, sizes, root, carried


@numba.njit
def _blocks(sizes: Any, roots: Any, y: Any) -> Any:
    """Blocks, one after the other, times a vector; each is symmetric."""
    found, first, at = np.zeros(len(y)), 0, 0
    for size in sizes:
        for j in range(size):
            for i in range(size):
                found[first + i] += roots[at + j * size + i] * y[first + j]
        first, at = first + size, at + size * size
    return found


@numba.njit
def _turn(n: Any, y: Any, data: Any) -> Any:
    """The model's own variables."""
    _, origin, order, sizes, roots, carried = _held(n, data)
    moved, x = _blocks(sizes, roots, _array(y, n, np.float64)), origin.copy()
    rows, shared = carried.shape
    for i in range(rows):
        for j in range(shared):
            moved[shared + i] -= carried[i, j] * moved[j]
    for i in range(n):
        x[order[i]] += moved[i]
    return x


@numba.cfunc(types.int64(*[types.uint64] * 5), cache=True)
def _logp(n: Any, y: Any, slope: Any, value: Any, data: Any) -> Any:
    """Log density and its gradient along the axes."""
    held, _, order, sizes, roots, carried = _held(n, data)
    x, own = _turn(n, y, data), np.empty(n)
    failed = _called(held[0], n, x.ctypes.data, own.ctypes.data, value, held[2])
    own = own[order]
    rows, shared = carried.shape
    for i in range(rows):
        for j in range(shared):
            own[j] -= carried[i, j] * own[shared + i]
    _array(slope, n, np.float64)[:] = _blocks(sizes, roots, own)
    return failed


@numba.cfunc(types.int64(*[types.uint64] * 5), cache=True)
def _expand(n: Any, expanded: Any, y: Any, values: Any, data: Any) -> Any:
    """All variables of a draw."""
    held, x = _array(data, 9, np.uint64), _turn(n, y, data)
    return _called(held[1], n, expanded, x.ctypes.data, values, held[2])
