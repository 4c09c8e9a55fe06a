"""The axes along which the sampler moves: the model's own variables, turned so that data pin them.

Nothing here changes the model. With few runs only sums of costs are known (weights read and
overhead of a pass, say), so that in the coefficients themselves the posterior is a curved ridge; in
the sum and the ratio of its parts it is not.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytensor.scalar as ps
import pytensor.tensor as pt
from pymc.logprob.transforms import Transform

from bayes_sd.model.design import Design, coefficients, run_machine
from bayes_sd.model.kernel import Group, per_run
from bayes_sd.model.priors import population
from bayes_sd.physics.costs import whole
from bayes_sd.physics.law import Law

PACES = ("pace_dense", "pace_experts")
# Coefficients whose costs add up, those of inner sums first: of a request alone, of each other one.
# Overheads of a token verified and of a sequence drafted are seldom told apart.
SUMS: dict[str, tuple] = {
    "alone": (
        (
            "read_weights",
            ("overhead_verify_alone", "overhead_pass", "overhead_experts", "overhead_parallel"),
            "host_verify_alone",
        ),
        ("overhead_prefill_alone", "host_prefill_alone", PACES),
        "overhead_draft_alone",
    ),
    "others": (
        ("prefill_token", "overhead_prefill_others", "host_prefill_others"),
        ("read_keys", "host_verify_others", "decode_token_ratio"),
        ("overhead_token", "overhead_draft_others"),
    ),
}
STAGES = ("prefill", "verify", "draft")
FEW = 0.05  # share of runs that decode beyond graphs: only prompts tell what launches them
WEIGHTLESS = 1e-3  # 1e9 parameters
RATIOS = ("decode_token_ratio",)  # to prefill_token
NOTHING = 1e-30  # s, of a request: has no weight in a sum, but a logarithm
CURVES = ("attention_tokens",)  # what costs depend on otherwise than by a factor


class Centred(Transform):
    r"""Between a value and its standardized one: ``x = mu + sd^(1 - c) (v - c mu)``.

    With `c` = 1 where the runs tell the value, with 0 where its population does. `mu`, `sd` and
    `c` are the parameters of the variable.
    """

    name = "centred"

    def backward(self, value: Any, *inputs: Any) -> Any:
        """The variable of the model."""
        mu, sd, share = inputs[1:4]
        return mu + sd ** (1 - share) * (value - share * mu)

    def forward(self, value: Any, *inputs: Any) -> Any:
        """The axis of the sampler."""
        mu, sd, share = inputs[1:4]
        return share * mu + (value - mu) * sd ** (share - 1)

    def log_jac_det(self, value: Any, *inputs: Any) -> Any:
        """Log of how much the variable moves with the axis."""
        _, sd, share = inputs[1:4]
        return pt.zeros_like(value) + (1 - share) * pt.log(sd)


class Sum(NamedTuple):
    """Costs, or sums of them, that add up."""

    parts: "tuple[Sum | str, ...]"

    @classmethod
    def of(cls, parts: "Iterable[Sum | str]") -> "Sum":
        """Without sums of nothing."""
        return cls(tuple(p for p in parts if isinstance(p, str) or p.parts))

    @property
    def terms(self) -> tuple[str, ...]:
        """Coefficients in it."""
        inner = ((p,) if isinstance(p, str) else p.terms for p in self.parts)
        return tuple(term for terms in inner for term in terms)

    def total(self, logs: list[Any]) -> Any:
        """Log of the sum."""
        return logs[0] if len(logs) == 1 else ps.log(sum(ps.exp(x) for x in logs))

    def ratios(self, logs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Log of the sum, and of each part over the first by the part's first cost, of all sums."""
        found: dict[str, Any] = {}
        totals = []
        for part in self.parts:
            total, inner = (logs[part], {}) if isinstance(part, str) else part.ratios(logs)
            found |= inner
            totals.append(total)
        firsts = (_first(part) for part in self.parts[1:])
        found |= {name: x - totals[0] for name, x in zip(firsts, totals[1:], strict=True)}
        return self.total(totals), found

    def costs(self, total: Any, ratios: Mapping[str, Any]) -> dict[str, Any]:
        """Logs of all costs: the way back."""
        over = [0.0, *(ratios[_first(part)] for part in self.parts[1:])]
        first, found = total - self.total(over), dict[str, Any]()
        for part, more in zip(self.parts, over, strict=True):
            log = first + more
            found |= {part: log} if isinstance(part, str) else part.costs(log, ratios)
        return found


def _first(part: Sum | str) -> str:
    return part if isinstance(part, str) else _first(part.parts[0])


class CostShares(Transform):
    r"""Logs of coefficients as logs of what a request costs in all, and of ratios of its parts.

    With parts `A` of a cost (coefficients times sizes and workload, at the runs' means), each axis
    of the sampler is the log of a sum, or of one part of a sum over the first. All of that shifts
    one log by others: the Jacobian is 1. Where several machines have coefficients of their own,
    (term, machine), so it is on each; what its runs do not tell has the axis of its population.
    """

    name = "shares"

    def __init__(self, design: Design, law: Law) -> None:
        self.law, self.design = law, design
        self.terms = tuple(p.name for p in design.told(population(law)))
        sites = design.of_sites
        each = [self._usual(rows) for rows in sites]
        self.at = {name: np.array([one[name] for one in each]) for name in each[0]}
        self.summed = set(self.terms).difference(() if self.at["pace"].any() else PACES)
        self.sums = [self._sum(parts) for parts in SUMS.values()]
        self.several, self.ndim_supp = len(sites) > 1, 2 if len(sites) > 1 else 1
        untold = [design.untold_in(rows) for rows in sites]
        loose = [one - self._firsts(self.sums, one) for one in untold]
        self.loose = np.array([[term in one for one in loose] for term in self.terms])

    def _usual(self, rows: np.ndarray) -> dict[str, float]:
        """Means of what the law takes of some runs; how often a request has each of its costs."""
        design = self.design
        data = {n: x[rows] for n, x in design.data.items() if len(x) == len(rows)}
        machine = {name: np.mean(x[rows]) for name, x in run_machine(design.table).items()}
        sizes = design.touched.iloc[data["verifier_i"]].mean().to_dict() | machine
        used = np.unique(data["drafter_i"][data["drafted"] > 0])
        # A drafter without weights, or none, has no cost to take the log of.
        params, layers = design.drafters.iloc[used].mean() if len(used) else (0.0, 1.0)
        sizes |= {"drafter": max(float(params), WEIGHTLESS), "drafter_layers": float(layers)}
        lengths = {n: float(data[n].mean()) for n in ("prompt_tokens", "output_tokens")}
        cycles, passes = float(data["cycles"].mean()), float(data["draft_passes"].mean())
        beyond = float(np.mean(data["pass_tokens"] > data["captured"]))
        # Where passes with prompts, and no others, are launched, pace is a cost of prompts.
        launched = lengths["prompt_tokens"] > machine["captured"] and beyond < FEW
        times = {"prefill": 1.0, "pace": float(launched), "verify": cycles}
        times["draft"] = cycles * max(passes, 1.0) * (len(used) > 0)
        return {**sizes, "k": 0.0, "cycles": cycles, **lengths, **times}

    def _firsts(self, sums: Iterable[Sum], untold: frozenset[str]) -> set[str]:
        """Coefficients whose axes are those of sums that the runs tell something of."""
        inner = [p for one in sums for p in one.parts if isinstance(p, Sum)]
        found = self._firsts(inner, untold) if inner else set[str]()
        return found | {_first(one) for one in sums if not untold.issuperset(one.terms)}

    def _sum(self, parts: tuple) -> Sum:
        inner: list[Sum | str] = [self._sum(p) if isinstance(p, tuple) else p for p in parts]
        return Sum.of(p for p in inner if isinstance(p, Sum) or p in self.summed)

    def _log_unit_costs(self, logs: dict[str, Any], at: Any) -> dict[str, Any]:
        """Log of what a coefficient of 1 costs a request, of those that are a cost."""
        curves = {n: ps.exp(logs[n]) for n in CURVES if n in logs}
        found: dict[str, Any] = {}
        for whose, one in zip(SUMS, self.sums, strict=True):
            stages = ("pace", *(f"{stage}_{whose}" for stage in STAGES))
            for term in one.terms:
                ones = dict.fromkeys(self.terms, 0.0) | curves | {term: 1.0}
                if term in RATIOS:
                    ones["prefill_token"] = 1.0
                costs = whole(self.law.stages(coefficients(self.design.all_terms(ones)), at, at))
                each = (getattr(costs, stage) * at[stage.split("_")[0]] for stage in stages)
                found[term] = ps.log(sum(each) + NOTHING)
        return found

    def _axes(self, values: dict[str, Any], at: Any) -> dict[str, Any]:
        axes = dict(values["value"])  # what is in no sum stands for itself
        parts = {t: axes[t] + unit for t, unit in self._log_unit_costs(axes, at).items()}
        parts |= {t: parts[t] + axes["prefill_token"] for t in RATIOS if t in parts}
        for one in self.sums:
            total, ratios = one.ratios(parts)
            axes |= {_first(one): total, **ratios}
        return {"axes": [axes[t] for t in self.terms]}

    def _logs(self, values: dict[str, Any], at: Any) -> dict[str, Any]:
        logs = dict(values["value"])
        units = self._log_unit_costs(logs, at)
        for one in self.sums:
            costs = one.costs(logs[_first(one)], values["value"])
            logs |= {t: cost - units[t] for t, cost in costs.items()}
        for term in (t for t in RATIOS if t in logs):
            logs[term] = logs[term] - logs["prefill_token"]
        return {"logs": [logs[t] for t in self.terms]}

    def _mapped(self, function: Any, value: Any) -> Any:
        level = np.arange(self.loose.shape[1]) if self.several else 0
        groups = {"value": Group(self.terms, pt.as_tensor(value), level)}
        (mapped,) = per_run(function, groups, self.at).values()
        return mapped if self.several else mapped[:, 0]

    def forward(self, value: Any, *inputs: Any) -> Any:
        """The axes of the sampler."""
        if not self.loose.any():
            return self._mapped(self._axes, value)
        axes = self._mapped(self._axes, pt.where(self.loose, np.log(NOTHING), value))
        return pt.where(self.loose, (value - inputs[1]) / inputs[2], axes)

    def backward(self, value: Any, *inputs: Any) -> Any:
        """The logs of the coefficients."""
        if not self.loose.any():
            return self._mapped(self._logs, value)
        logs = self._mapped(self._logs, pt.where(self.loose, np.log(NOTHING), value))
        return pt.where(self.loose, inputs[1] + inputs[2] * value, logs)

    def log_jac_det(self, value: Any, *inputs: Any) -> Any:
        """Zero, but for what moves with the scale of a population: see above."""
        if not self.loose.any():
            return pt.zeros(value.shape[: value.ndim - self.ndim_supp])
        return pt.where(self.loose, pt.log(inputs[2]), 0.0).sum()
