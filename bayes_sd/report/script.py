"""The law as JavaScript: what Python's functions do with traced values, written down.

What is computed once for a question, once a draw and once a load stands outside, between and inside
of the loops, since every value knows the innermost of those that it depends on.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

QUESTION, DRAW, LOAD = 1, 2, 3  # what a value depends on, the innermost
POWERS = {0.5: "Math.sqrt({0})", 2.0: "{0} * {0}", 1.0: "{0}", -1.0: "1 / {0}"}
SOURCE = {
    "add": "{0} + {1}",
    "subtract": "{0} - {1}",
    "multiply": "{0} * {1}",
    "true_divide": "{0} / {1}",
    "power": "Math.pow({0}, {1})",
    "absolute": "Math.abs({0})",
    "negative": "-{0}",
    "where": "{0} ? {1} : {2}",
    **{n: f"{{0}} {s} {{1}} ? 1 : 0" for n, s in (("less", "<"), ("less_equal", "<="))},
    **{n: f"{{0}} {s} {{1}} ? 1 : 0" for n, s in (("greater", ">"), ("greater_equal", ">="))},
}


def _number(value: Any) -> bool:
    return not isinstance(value, Value)


class Value:
    """A traced number: an input, or an operation on other values; `most` bounds an input."""

    def __init__(self, depends: int, name: str, args: tuple[Any, ...] = (), most: int = 0) -> None:
        self.depends, self.name, self.args, self.most = depends, name, args, most

    def __array_ufunc__(self, ufunc: Any, method: str, *args: Any, **_: Any) -> Any:
        if ufunc is np.isnan:
            return np.False_
        return _applied(ufunc.__name__, *args)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function is np.where:
            return _applied("where", *args)
        if function is np.any:  # then both cases are written down
            return True
        if function is np.max and self.most:
            return self.most
        raise TypeError(f"{function.__name__} has no JavaScript")

    def __bool__(self) -> bool:
        raise TypeError("a traced value is neither true nor false")

    def __abs__(self) -> Any:
        return _applied("absolute", self)

    def __neg__(self) -> Any:
        return _applied("negative", self)


def _operator(name: str, swapped: bool) -> Callable[[Any, Any], Any]:
    return lambda self, other: _applied(name, *((other, self) if swapped else (self, other)))


for _short, _name in (
    *(("add", "add"), ("sub", "subtract"), ("mul", "multiply")),
    *(("truediv", "true_divide"), ("pow", "power")),
):
    setattr(Value, f"__{_short}__", _operator(_name, False))
    setattr(Value, f"__r{_short}__", _operator(_name, True))
for _short, _name in (("lt", "less"), ("le", "less_equal"), ("gt", "greater")):
    setattr(Value, f"__{_short}__", _operator(_name, False))
Value.__ge__ = _operator("greater_equal", False)  # type: ignore[attr-defined]


def _applied(name: str, *args: Any) -> Any:
    """An operation on values and numbers; one that changes nothing leaves no trace."""
    args = tuple(a if isinstance(a, Value) else float(np.asarray(a)) for a in args)
    if name == "where" and _number(args[0]):
        return args[1] if args[0] else args[2]
    if all(map(_number, args)):
        return getattr(np, name)(*args)
    zero, one = (next((i for i in (0, 1) if args[i : i + 1] == (n,)), None) for n in (0.0, 1.0))
    if name == "multiply" and zero is not None:
        return 0.0  # what is finite, of a part that is not there
    if (name == "add" and zero is not None) or (name == "multiply" and one is not None):
        return args[1 - (zero if name == "add" else one)]  # type: ignore[operator]
    if name.startswith(("less", "greater")) and np.inf in args:  # every value is below
        return float((args[1] == np.inf) == name.startswith("less"))
    return Value(max(a.depends for a in args if isinstance(a, Value)), name, args)


def named(names: Sequence[str], depends: int) -> dict[str, Value]:
    """Inputs by name."""
    return {name: Value(depends, name) for name in names}


def javascript(
    name: str, inputs: Mapping[str, Value], outputs: Mapping[str, Any]
) -> tuple[str, dict[str, list[str]]]:
    """A function that fills arrays with the outputs, and which inputs it takes.

    ``name(question, draws, loads, into)`` takes numbers by place, columns of draws by place, and
    loads; ``into[place][load * draws + draw]`` is an output.
    """
    code: dict[Any, str] = {id(v): "" for v in inputs.values()}
    known: dict[tuple[Any, ...], str] = {}
    lines: dict[int, list[str]] = {QUESTION: [], DRAW: [], LOAD: []}
    used: dict[int, list[str]] = {QUESTION: [], DRAW: [], LOAD: []}
    read = {QUESTION: "question[{0}]", DRAW: "draws[{0}][i]", LOAD: "loads[j]"}

    def written(value: Any) -> str:
        if _number(value):
            text = repr(float(value)).replace("inf", "Infinity")
            return f"({text})" if text.startswith("-") else text
        if not value.args:
            if not code[id(value)]:
                code[id(value)] = f"v{len(known)}"
                known[("input", value.name)] = value.name
                place = len(used[value.depends])
                used[value.depends].append(value.name)
                source = read[value.depends].format(place)
                lines[value.depends].append(f"const {code[id(value)]} = {source};")
            return code[id(value)]
        if id(value) in code:
            return code[id(value)]
        args = tuple(map(written, value.args))
        key = (value.name, *args)
        if key not in known:
            power = POWERS.get(value.args[1]) if value.name == "power" and args[1][0] != "v" else ""
            source = (power or SOURCE[value.name]).format(*args)
            known[key] = f"v{len(known)}"
            lines[value.depends].append(f"const {known[key]} = {source};")
        code[id(value)] = known[key]
        return known[key]

    store = [f"into[{i}][j * n + i] = {written(v)};" for i, v in enumerate(outputs.values())]
    text = [
        f"function {name}(question, draws, loads, into, n) {{",
        *lines[QUESTION],
        "for (let i = 0; i < n; i++) {",
        *lines[DRAW],
        "for (let j = 0; j < loads.length; j++) {",
        *(lines[LOAD] + store),
        "}}}",
    ]
    return "\n".join(text), {"question": used[QUESTION], "draws": used[DRAW]}
