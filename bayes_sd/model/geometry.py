"""The axes along which the sampler moves: the model's own variables, turned so that data pin them.

Nothing here changes the model. With few runs only sums of costs are known (weights read and
overhead of a pass, say), so that in the coefficients themselves the posterior is a curved ridge; in
the sum and the ratio of its parts it is not.
"""

from typing import Any

import numpy as np
import pytensor.scalar as ps
import pytensor.tensor as pt
from pymc.logprob.transforms import Transform

from bayes_sd.model.design import Design, coefficients, run_machine
from bayes_sd.model.kernel import Group, per_run
from bayes_sd.model.priors import population
from bayes_sd.physics.costs import whole
from bayes_sd.physics.law import Law

# Coefficients that add up to a cost: of the first request, and of each other one.
GROUPS: tuple[dict[str, tuple[str, ...]], ...] = (
    {
        "verify_alone": (
            *("read_weights", "overhead_verify_alone", "overhead_pass", "host_verify_alone"),
            *("overhead_experts", "overhead_parallel"),
        ),
        "prefill_alone": ("prefill_token_alone", "overhead_prefill_alone", "host_prefill_alone"),
        "draft_alone": ("overhead_draft_alone",),
    },
    {
        "prefill_others": (
            *("prefill_token_others", "overhead_prefill_others", "host_prefill_others"),
        ),
        "verify_others": (
            *("overhead_token", "read_keys", "host_verify_others", "decode_token_ratio"),
        ),
        "draft_others": ("overhead_draft_others",),
    },
)
WEIGHTLESS = 1e-3  # 1e9 parameters
RATIOS = ("decode_token_ratio",)  # to prefill_token_others
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


class CostShares(Transform):
    r"""Logs of coefficients as logs of what a request costs in all, and of ratios of its parts.

    With parts `A` of a cost (coefficients times sizes and workload, at the runs' means), each axis
    of the sampler is the log of a sum of stages, of one stage over the first of them, or of one
    part over the first of its stage. All of that shifts one log by others: the Jacobian is 1.
    """

    name = "shares"
    ndim_supp = 1

    def __init__(self, design: Design, law: Law) -> None:
        self.law, self.design = law, design
        self.terms = tuple(p.name for p in design.told(population(law)))
        data, drafters = design.data, design.drafters
        machine = {name: np.mean(x) for name, x in run_machine(design.table).items()}
        self.sizes = design.touched.iloc[data["verifier_i"]].mean().to_dict() | machine
        # A drafter without weights, or none, has no cost to take the log of.
        params, layers = drafters.mean() if len(drafters) else (0.0, 1.0)
        self.sizes |= {"drafter": max(float(params), WEIGHTLESS), "drafter_layers": float(layers)}
        lengths = {n: float(data[n].mean()) for n in ("prompt_tokens", "output_tokens")}
        self.workload = {"k": 0.0, **lengths}
        cycles, passes = float(data["cycles"].mean()), float(data["draft_passes"].mean())
        self.times = {"prefill": 1.0, "verify": cycles, "draft": cycles * max(passes, 1.0)}
        named = ([[t for t in ts if t in self.terms] for ts in group.values()] for group in GROUPS)
        self.groups = [[stage for stage in group if stage] for group in named]

    def _log_unit_costs(self, logs: dict[str, Any], at: Any) -> dict[str, Any]:
        """Log of what a coefficient of 1 costs a request, of those that are a cost."""
        curves = {n: ps.exp(logs[n]) for n in CURVES if n in logs}
        found: dict[str, Any] = {}
        for stage, terms in (GROUPS[0] | GROUPS[1]).items():
            for term in (t for t in terms if t in logs):
                ones = dict.fromkeys(self.terms, 0.0) | curves | {term: 1.0}
                if term in RATIOS:
                    ones["prefill_token_others"] = 1.0
                costs = whole(self.law.stages(coefficients(self.design.all_terms(ones)), at, at))
                found[term] = ps.log(getattr(costs, stage) * at[stage.split("_")[0]])
        return found

    def _axes(self, values: dict[str, Any], at: Any, _: Any) -> dict[str, Any]:
        logs = values["value"]
        parts: dict[str, Any] = {}
        for term, unit in self._log_unit_costs(logs, at).items():
            parts[term] = logs[term] + unit
            if term in RATIOS:
                parts[term] = parts[term] + logs["prefill_token_others"]
        axes = dict(logs)  # what is no cost stands for itself
        for group in self.groups:
            totals = [_log_sum([parts[t] for t in stage]) for stage in group]
            for (first, *rest), total in zip(group, totals, strict=True):
                axes.update({t: parts[t] - parts[first] for t in rest})
                axes[first] = total - totals[0]
            axes[group[0][0]] = _log_sum(totals)
        return {"axes": [axes[t] for t in self.terms]}

    def _logs(self, values: dict[str, Any], at: Any, _: Any) -> dict[str, Any]:
        axes = values["value"]
        logs, units = dict(axes), self._log_unit_costs(axes, at)
        for group in self.groups:
            between = [0.0, *(axes[stage[0]] for stage in group[1:])]
            whole = axes[group[0][0]] - _log_sum(between)
            for stage, share in zip(group, between, strict=True):
                within = [0.0, *(axes[t] for t in stage[1:])]
                first = whole + share - _log_sum(within)
                logs |= {t: first + x - units[t] for t, x in zip(stage, within, strict=True)}
        for term in (t for t in RATIOS if t in logs):
            logs[term] = logs[term] - logs["prefill_token_others"]
        return {"logs": [logs[t] for t in self.terms]}

    def _mapped(self, function: Any, value: Any) -> Any:
        known: dict[Any, float] = {**self.sizes, **self.workload, **self.times}
        data = {name: np.array([x]) for name, x in known.items()}
        groups = {"value": Group(self.terms, pt.as_tensor(value))}
        (mapped,) = per_run(function, groups, data).values()
        return mapped[:, 0]

    def forward(self, value: Any, *inputs: Any) -> Any:
        """The axes of the sampler."""
        return self._mapped(self._axes, value)

    def backward(self, value: Any, *inputs: Any) -> Any:
        """The logs of the coefficients."""
        return self._mapped(self._logs, value)

    def log_jac_det(self, value: Any, *inputs: Any) -> Any:
        """Zero: see above."""
        return pt.zeros(value.shape[:-1])


def _log_sum(logs: list[Any]) -> Any:
    return logs[0] if len(logs) == 1 else ps.log(sum(ps.exp(x) for x in logs))
