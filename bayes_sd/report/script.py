"""Python's functions as JavaScript: they are called with values that write down what is done.

What depends on the question alone, on the draw or on the load stands outside, between or inside of
two loops.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

QUESTION, DRAW, LOAD = range(3)
READ = ("question[{}]", "draws[{}][i]", "loads[j]")
LOOPS = ("for (let i = 0; i < n; i++) {", "for (let j = 0; j < loads.length; j++) {")
SOURCE = {
    **{"add": "{} + {}", "subtract": "{} - {}", "multiply": "{} * {}", "divide": "{} / {}"},
    **{"absolute": "Math.abs({})", "negative": "-{}", "where": "{} ? {} : {}"},
    **{"less": "+({} < {})", "less_equal": "+({} <= {})"},
    **{"greater": "+({} > {})", "greater_equal": "+({} >= {})"},
}
POWERS: dict[Any, str] = {0.5: "Math.sqrt({0})", 2.0: "{0} * {0}", -1.0: "1 / {0}"}
INPUT = "// "
SETTLED = 1e-5  # last change of what is repeated, whose error is then far smaller
LOGARITHM = "Math.exp({1} * Math.log({0}))"


class Value(NDArrayOperatorsMixin):
    """A number that is not known yet: `depends` on the question, the draw or the load."""

    def __init__(self, tape: "Tape", depends: int, code: str, of: tuple[Any, ...]) -> None:
        self.tape, self.depends, self.code, self.of = tape, depends, code, of
        self.loop = ""  # name of what the loop inside which it is results in
        self.name = f"v{len(tape.values)}"

    def __array_ufunc__(self, ufunc: Any, method: str, *args: Any, **_: Any) -> Any:
        return np.False_ if ufunc is np.isnan else self.tape.applied(ufunc.__name__, *args)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function is np.max:
            return self.tape.k_most
        # Whether any is beyond the captured graphs: then both cases are written down.
        return True if function is np.any else self.tape.applied(function.__name__, *args)

    def __bool__(self) -> bool:
        raise TypeError("what is not known yet is neither true nor false")

    def settled(self, step: Callable[["Value"], "Value"], most: int) -> "Value":
        """What `step` makes of this again and again, until it no longer changes; never above it."""
        tape, before = self.tape, {*self.tape.values}
        again = tape._kept(LOAD, f"{self.name} again")
        end = step(again)
        loop = tape._kept(LOAD, f"{most} {end.name}", (self, again, end))
        inside = {again.name}
        for code, value in tape.values.items():
            beside = code in before or value is loop
            if not beside and inside & {value.name, *(v.name for v in value.of)}:
                inside.add(value.name)
                value.loop = loop.name
        return loop


class Tape:
    """What was done, in order and each once; `k_most` is the longest draft."""

    def __init__(self, k_most: int) -> None:
        self.values: dict[str, Value] = {}
        self.k_most = k_most

    def __call__(self, depends: int, *names: str) -> dict[str, Value]:
        """Inputs by name."""
        return {name: self._kept(depends, f"{INPUT}{name}") for name in names}

    def _kept(self, depends: int, code: str, of: tuple[Value, ...] = ()) -> Value:
        return self.values.setdefault(code, Value(self, depends, code, of))

    def applied(self, name: str, *args: Any) -> Any:
        """An operation; of a part of the law that is not there no trace is left."""
        known = [None if isinstance(a, Value) else float(a) for a in args]
        if None not in known:
            return getattr(np, name)(*known)
        match [name, *known]:
            case ["where", float(holds), *_]:
                return args[1] if holds else args[2]
            case ["add", 0.0, _] | ["multiply", 1.0, _]:
                return args[1]
            case ["add" | "subtract", _, 0.0] | ["multiply", _, 1.0]:
                return args[0]
            case ["multiply", 0.0, _] | ["multiply", _, 0.0] | ["divide", 0.0, _]:
                return 0.0
            case ["greater", _, np.inf]:  # captured graphs, where all passes have one
                return 0.0
        texts = [
            a.name if k is None else f"({k!r})".replace("inf", "Infinity")
            for a, k in zip(args, known, strict=True)
        ]
        pattern = POWERS.get(known[1], LOGARITHM) if name == "power" else SOURCE[name]
        of = tuple(a for a in args if isinstance(a, Value))
        return self._kept(max(a.depends for a in of), pattern.format(*texts), of)

    def javascript(self, name: str, outputs: list[Any]) -> tuple[str, list[list[str]]]:
        """A function ``name(question, draws, loads, into, n)``, and names of what it takes.

        ``into[place][load * n + draw]`` is an output.
        """
        needed, todo = set[str](), [*outputs]
        while todo:
            value = todo.pop()
            todo += () if value.name in needed else value.of
            needed.add(value.name)
        lines: list[list[str]] = [[], [], []]
        takes: list[list[str]] = [[], [], []]
        loops: dict[str, list[str]] = defaultdict(list)
        for code, value in self.values.items():
            if value.name not in needed:
                continue
            if value.name in loops:
                start, again, end = (v.name for v in value.of)
                most, here = code.split()[0], value.name
                # It begins where it ended at the load before.
                lines[DRAW].append(f"let last{here} = 0;")
                near = f"last{here} > 0 && last{here} < {start} ? last{here} : {start}"
                step = f"{here} = {end} > 0 && {end} < {start} ? {end} : {start};"
                stop = f"if (!(Math.abs({here} - {again}) > {SETTLED} * {here})) break;"
                body = [f"const {again} = {here};", *loops[value.name], step, stop]
                head = f"let {here} = {near};\nfor (let s = 0; s < {most}; s++) {{"
                lines[LOAD] += [head, *body, "}", f"last{here} = {here};"]
                continue
            if code.startswith(INPUT):
                own = takes[value.depends]
                code = READ[value.depends].format(len(own))
                own.append(value.code.removeprefix(INPUT))
            if value.loop:
                loops[value.loop] += [f"const {value.name} = {code};"] * bool(value.of)
            else:
                lines[value.depends].append(f"const {value.name} = {code};")
        lines[LOAD] += [f"into[{i}][j * n + i] = {v.name};" for i, v in enumerate(outputs)]
        parts = [f"function {name}(question, draws, loads, into, n) {{", *lines[QUESTION]]
        parts += [LOOPS[0], *lines[DRAW], LOOPS[1], *lines[LOAD], "}}}"]
        return "\n".join(parts), takes
