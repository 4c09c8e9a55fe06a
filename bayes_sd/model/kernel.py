"""Functions of one run as operators over all runs, compiled once whatever the data.

PyTensor takes the law apart into hundreds of array operations, which it rewrites, fuses and
compiles for every data set anew. Here a function of scalars, as the law is, is traced and
differentiated once. Its loop over runs depends on no data and no number of runs, so the compiler's
cache has it ready, and it is called by address, so no model compiles it again.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import numba
import numpy as np
import pytensor.scalar as ps
import pytensor.tensor as pt
from nutpie.compile_pymc import address_as_void_pointer
from pytensor.gradient import DisconnectedType, grad
from pytensor.graph.basic import Apply
from pytensor.graph.fg import FrozenFunctionGraph
from pytensor.graph.op import Op
from pytensor.link.numba.cache import _call_cached_ptr, compile_numba_function_src
from pytensor.link.numba.dispatch.basic import numba_njit, register_funcify_and_cache_key

VERSION = 2  # of the generated code; a new one where the same source is compiled otherwise
TILE = 16  # runs at once, so that the processor computes several with one instruction
POWERS = {  # cheaper than by a logarithm
    "(2.0)": "{0} * {0}",
    "(1.0)": "{0}",
    "(0.5)": "math.sqrt({0})",
    "(-0.5)": "1 / math.sqrt({0})",
    "(-1.0)": "1 / {0}",
}
SOURCE: dict[type, Callable[[list[str]], str]] = {  # of scalar operators
    ps.Add: " + ".join,
    ps.Mul: " * ".join,
    ps.Sub: " - ".join,
    ps.TrueDiv: " / ".join,
    ps.Mod: " % ".join,
    ps.LE: " <= ".join,
    ps.LT: " < ".join,
    ps.GE: " >= ".join,
    ps.GT: " > ".join,
    ps.EQ: " == ".join,
    ps.Neg: lambda x: f"-{x[0]}",
    ps.Abs: lambda x: f"abs({x[0]})",
    ps.Exp: lambda x: f"math.exp({x[0]})",
    ps.Log: lambda x: f"math.log({x[0]})",
    ps.Sign: lambda x: f"np.sign({x[0]})",
    ps.Cast: lambda x: f"float({x[0]})",
    ps.Second: lambda x: x[1],
    ps.Switch: lambda x: f"{x[1]} if {x[0]} else {x[2]}",
    ps.Pow: lambda x: POWERS.get(x[1], "math.exp({1} * math.log({0}))").format(*x),
}
_NAMES = {"np": np, "math": math, "carray": numba.carray, "pointer": address_as_void_pointer}
_NAMES["__name__"] = __name__  # where numba's cache looks for them
_COMPILED: dict[str, Any] = {}


class Group(NamedTuple):
    """Parameters (name, level), or (name,) of a single level, and the level of each run."""

    names: Sequence[str]
    values: Any
    level: np.ndarray | int = 0


Function = Callable[[dict[str, dict[str, Any]], dict[str, Any]], Mapping]


def per_run(function: Function, groups: Mapping[str, Group], data: Mapping) -> dict[str, Any]:
    """What a function of scalars says of every run, by name, with gradients.

    ``function(parameters, data)`` takes the parameters of each group, and data, by name, and uses
    operators only. A number that it returns becomes a vector (run), a list a matrix (place, run).
    """
    scalars = {name: {n: ps.float64() for n in group.names} for name, group in groups.items()}
    known = {name: ps.float64() for name in data}
    said = function(scalars, known)
    matrix = np.array([*data.values()], float)
    levels = [np.broadcast_to(group.level, matrix.shape[1]) for group in groups.values()]
    inputs = [group.values for group in groups.values()]
    single = tuple(isinstance(group.level, int) for group in groups.values())
    traced = Traced.of(scalars, known, said, single)
    values = PerRun(traced).make_node(*inputs, np.array(levels, np.int64), matrix).outputs
    return dict(zip(said, values, strict=True))


class Traced(NamedTuple):
    """A function of one run and its pullback, as graphs of scalars."""

    value: FrozenFunctionGraph
    pullback: FrozenFunctionGraph
    parameters: tuple[int, ...]  # how many of each group
    data: int
    outputs: tuple[int, ...]  # how many places, 0 of a number
    single: tuple[bool, ...]  # whether all runs share the parameters of a group

    @classmethod
    def of(cls, scalars: dict, data: dict, said: Mapping, single: tuple[bool, ...]) -> "Traced":
        """Differentiate."""
        outputs = [o for v in said.values() for o in (v if isinstance(v, list) else [v])]
        parameters = [p for group in scalars.values() for p in group.values()]
        given = [ps.float64() for _ in outputs]
        cost = sum(g * o for g, o in zip(given, outputs, strict=True))
        slopes: Any = grad(cost, parameters, disconnected_inputs="ignore")
        inputs = [*parameters, *data.values()]
        return cls(
            FrozenFunctionGraph.from_io(inputs, outputs, dedup_nodes=True),
            FrozenFunctionGraph.from_io([*inputs, *given], slopes, dedup_nodes=True),
            tuple(len(group) for group in scalars.values()),
            len(data),
            tuple(len(v) if isinstance(v, list) else 0 for v in said.values()),
            single,
        )


class _Loop(Op):
    """A loop over runs in compiled code: of groups of parameters, their levels, and data."""

    __props__ = ("traced",)

    def __init__(self, traced: Traced) -> None:
        self.traced = traced

    def __str__(self) -> str:
        return type(self).__name__

    @property
    def groups(self) -> int:
        """Number of inputs that are parameters."""
        return len(self.traced.parameters)

    def shapes(self, inputs: Sequence[Any]) -> list[tuple]:
        """Shapes of the outputs for shapes of the inputs: of gradients, those of parameters."""
        return [tuple(shape) for shape in inputs[: self.groups]]

    def make_node(self, *inputs: Any) -> Apply:
        """Shapes as far as they are known."""
        tensors = [pt.as_tensor(i) for i in inputs]
        shapes = self.shapes([t.type.shape for t in tensors])
        return Apply(self, tensors, [pt.tensor(shape=s, dtype="float64") for s in shapes])

    def infer_shape(self, node: Apply, shapes: Any) -> list[tuple]:
        """Shapes without a computation."""
        return [tuple(pt.as_tensor(n) for n in shape) for shape in self.shapes(shapes)]

    def perform(self, node: Apply, inputs: Any, output_storage: Any) -> None:
        """Call the compiled code from Python."""
        arrays = [np.ascontiguousarray(i) for i in inputs]
        arrays += [np.empty(shape) for shape in self.shapes([a.shape for a in arrays])]
        levels = [a.shape[1] if a.ndim > 1 else 1 for a in arrays[: self.groups]]
        runs = arrays[self.groups].shape[1]
        compiled(self)[1].ctypes(*(a.ctypes.data for a in arrays), *levels, runs)
        for storage, array in zip(output_storage, arrays[len(inputs) :], strict=True):
            storage[0] = array


class PerRun(_Loop):
    """Values of every run."""

    def shapes(self, inputs: Sequence[Any]) -> list[tuple]:
        """Vectors and matrices over runs."""
        runs = inputs[self.groups][1]
        return [(count, runs) if count else (runs,) for count in self.traced.outputs]

    def pullback(self, inputs: Any, outputs: Any, output_grads: Any) -> list:
        """Gradients of the parameters; levels and data have none."""
        given = [
            pt.zeros_like(o) if isinstance(g.type, DisconnectedType) else g
            for o, g in zip(outputs, output_grads, strict=True)
        ]
        node = Pullback(self.traced).make_node(*inputs, *given)
        return [*node.outputs, DisconnectedType()(), DisconnectedType()()]

    def connection_pattern(self, node: Apply) -> list:
        """Only parameters are connected."""
        outputs = len(self.traced.outputs)
        return [[True] * outputs] * self.groups + [[False] * outputs] * 2


class Pullback(_Loop):
    """Gradients of the parameters, given those of the values."""


def _arrays(op: _Loop) -> tuple[dict[str, str], dict[str, str]]:
    """Names of what the loop takes and of what it returns, and their shapes."""
    parameters = {f"x{i}": f"({n}, levels{i})" for i, n in enumerate(op.traced.parameters)}
    inputs = parameters | {"level": f"({op.groups}, runs)", "data": f"({op.traced.data}, runs)"}
    of_runs = [f"({n or 1}, runs)" for n in op.traced.outputs]
    if isinstance(op, PerRun):
        return inputs, {f"out{i}": shape for i, shape in enumerate(of_runs)}
    inputs |= {f"given{i}": shape for i, shape in enumerate(of_runs)}
    return inputs, {f"out{i}": shape for i, shape in enumerate(parameters.values())}


def source(op: _Loop) -> str:
    """The loop over runs, as Python: tiles of runs, whose values lie side by side in `w`."""
    traced, back = op.traced, isinstance(op, Pullback)
    graph = traced.pullback if back else traced.value
    parameters = [(j, i) for j, n in enumerate(traced.parameters) for i in range(n)]
    places = [(j, i) for j, n in enumerate(traced.outputs) for i in range(n or 1)]
    row = {("data", 0, i): i for i in range(traced.data)}  # of `w`
    row |= {("given", *at): len(row) + i for i, at in enumerate(places if back else [])}
    own = [at for at in parameters if not traced.single[at[0]]]
    row |= {("x", *at): len(row) + i for i, at in enumerate(own)}
    row |= {("out", *at): len(row) + i for i, at in enumerate(parameters if back else places)}
    read = [f"x{j}[{i}, 0]" if traced.single[j] else f"w[{row['x', j, i]}, t]"
            for j, i in parameters]  # fmt: skip
    read += [f"w[{at}, t]" for (kind, *_), at in row.items() if kind in ("data", "given")]
    used = {v for node in graph.apply_nodes for v in node.inputs} | {*graph.outputs}
    names = {v: f"v{i}" for i, v in enumerate(graph.inputs)}
    loads = [f"{names[v]} = {r}" for v, r in zip(graph.inputs, read, strict=True) if v in used]
    body = [load for load in loads if "w[" in load]

    def name(v: Any) -> str:
        return names[v] if v in names else f"({float(v.data)!r})"

    for node in graph.toposort():
        (output,) = node.outputs
        if output in names:  # equal to an earlier one
            continue
        terms = [name(v) for v in node.inputs]
        if all(term.startswith("(") for term in terms):
            names[output] = f"({float(node.op.impl(*(float(t[1:-1]) for t in terms)))!r})"
        else:
            names[output] = f"v{len(names)}"
            body.append(f"{names[output]} = {SOURCE[type(node.op)](terms)}")
    ends = [(key, at) for key, at in row.items() if key[0] == "out"]
    for ((_, j, _), at), output in zip(ends, graph.outputs, strict=True):
        body.append(f"w[{at}, t] {'+=' if back and traced.single[j] else '='} {name(output)}")
    inputs, outputs = _arrays(op)
    head = [
        f"{a} = carray(pointer({a}_p), {shape}, np.{'int64' if a == 'level' else 'float64'})"
        for a, shape in (inputs | outputs).items()
    ]
    head += [f"{a}[:] = 0.0" for a in outputs] if back else []
    head += [load for load in loads if "w[" not in load]
    levels = (f"levels{i}" for i in range(op.groups))
    arguments = ", ".join([*(f"{a}_p" for a in (inputs | outputs)), *levels, "runs"])
    tile = [f"m = min({TILE}, runs - first)"]
    for kind, j in dict.fromkeys((kind, j) for kind, j, _ in row if kind in ("data", "given")):
        rows = [place for (k, other, _), place in row.items() if (k, other) == (kind, j)]
        array = "data" if kind == "data" else f"given{j}"
        tile += [f"for i in range({len(rows)}):", "    for t in range(m):"]
        tile.append(f"        w[{rows[0]} + i, t] = {array}[i, first + t]")
    sums = []
    for (kind, j, i), at in row.items():
        if kind == "x":
            tile += ["for t in range(m):", f"    w[{at}, t] = x{j}[{i}, level[{j}, first + t]]"]
    tile += ["for t in range(m):", *("    " + line for line in body)]
    for (_, j, i), at in ends:
        if not back:
            tile += ["for t in range(m):", f"    out{j}[{i}, first + t] = w[{at}, t]"]
        elif traced.single[j]:
            sums += [f"out{j}[{i}, 0] = w[{at}].sum()"]
        else:
            tile += ["for t in range(m):", f"    out{j}[{i}, level[{j}, first + t]] += w[{at}, t]"]
    lines = [*head, f"w = np.zeros(({len(row)}, {TILE}))"]
    lines += [f"for first in range(0, runs, {TILE}):", *("    " + line for line in tile), *sums]
    return "\n".join([f"def loop({arguments}):", *("    " + line for line in lines)])


def signature(op: _Loop) -> Any:
    """Addresses of all arrays, how many levels each group has, and how many runs there are."""
    inputs, outputs = _arrays(op)
    addresses = [numba.types.uintp] * (len(inputs) + len(outputs))
    return numba.types.void(*addresses, *[numba.types.intp] * (op.groups + 1))


def compiled(op: _Loop) -> tuple[str, Any]:
    """The loop's name in caches, and the loop as a C function."""
    text = source(op)
    key = sha256(f"{VERSION} {text}".encode()).hexdigest()
    if key not in _COMPILED:
        function = compile_numba_function_src(text, "loop", dict(_NAMES), cache_key=key)
        how: dict[str, Any] = {"cache": True, "error_model": "numpy"}
        _COMPILED[key] = numba.cfunc(signature(op), **how)(function)
    return key, _COMPILED[key]


def _address(key: str) -> int:
    return int(_COMPILED[key].address)


@register_funcify_and_cache_key(PerRun)
@register_funcify_and_cache_key(Pullback)
def _funcify(op: _Loop, node: Apply, **_: Any) -> tuple[Any, str]:
    """A call of the loop by its address."""
    key, _code = compiled(op)

    @numba_njit
    def address() -> Any:
        with numba.objmode(found=numba.types.intp):
            found = _address(key)
        return found

    inputs, outputs = _arrays(op)
    runs = "level.shape[1]"
    if isinstance(op, Pullback):
        made = [f"np.empty(x{i}.shape)" for i in range(op.groups)]
    else:
        made = [f"np.empty(({n}, {runs}))" if n else f"np.empty({runs})" for n in op.traced.outputs]
    ndim = [v.type.ndim for v in node.inputs[: op.groups]]
    levels = [f"x{i}.shape[1]" if n > 1 else "1" for i, n in enumerate(ndim)]
    # Two functions: what the first one holds is not freed while the second one runs.
    called = ", ".join([*(f"{a}.ctypes.data" for a in (*inputs, *outputs)), *levels, runs])
    text = f"def call({', '.join((*inputs, *outputs))}):\n    code(address, kind, key)({called})"
    here = {"code": _call_cached_ptr, "address": address, "key": key}
    here["kind"] = numba.types.FunctionType(signature(op))
    call = numba_njit(compile_numba_function_src(text, "call", _NAMES | here))
    lines = [
        f"def loop({', '.join(inputs)}):",
        *(f"{o} = {empty}" for o, empty in zip(outputs, made, strict=True)),
        f"call({', '.join(f'np.ascontiguousarray({a})' for a in inputs)}, {', '.join(outputs)})",
        f"return {', '.join(outputs)}",
    ]
    loop = compile_numba_function_src("\n    ".join(lines), "loop", _NAMES | {"call": call})
    return numba_njit(loop), f"{key} {ndim}"
