"""The axes along which the sampler moves: the model's own variables, turned so that data pin them.

Nothing here changes the model. With few runs only sums of costs are known (weights read and
overhead of a pass, say), so that in the coefficients themselves the posterior is a curved ridge; in
the sum and the ratio of its parts it is not.
"""

from typing import Any

import numpy as np
import pytensor.tensor as pt
from pymc.logprob.transforms import Transform
from pytensor.compile.builders import OpFromGraph

from bayes_sd.model.design import Design, coefficients
from bayes_sd.model.priors import population
from bayes_sd.physics.law import Law
from bayes_sd.physics.queue import coverage

# Coefficients that add up to a cost: of the first request, and of each other one.
GROUPS = (
    (
        ("verify_alone", ("weights_per_pass", "overhead_verify_alone", "host_verify_alone")),
        ("prefill_alone", ("prefill_token_alone", "overhead_prefill_alone", "host_prefill_alone")),
        ("draft_alone", ("overhead_draft_alone",)),
    ),
    (
        (
            "prefill_others",
            ("prefill_token_others", "overhead_prefill_others", "host_prefill_others"),
        ),
        ("verify_others", ("overhead_verify_others", "host_verify_others", "decode_token_ratio")),
        ("draft_others", ("overhead_draft_others", "draft_token_ratio")),
    ),
)
WEIGHTLESS = 1e-3  # 1e9 parameters
RATIOS = ("decode_token_ratio", "draft_token_ratio")  # to prefill_token_others
CURVES = ("attention_tokens", "context_tokens")  # what costs depend on otherwise than by a factor
# Share of an effect's scale that is left to its own value: 1 where its runs say more than the
# scale does, 0 where they say less.
CENTRED = {
    "verifier": np.array([1.0, 1.0, 1.0, 1.0]),
    "drafter": np.array([1.0, 0.0]),
    "server": np.array([1.0, 0.0]),
}


class Centred(Transform):
    r"""Between a value and its standardized one: ``x = mu + sd^(1 - c) (v - c mu)``."""

    name = "centred"

    def __init__(self, share: np.ndarray) -> None:
        self.share = share

    def backward(self, value: Any, *inputs: Any) -> Any:
        """The variable of the model."""
        mu, sd = inputs[-2:]
        return mu + sd ** (1 - self.share) * (value - self.share * mu)

    def forward(self, value: Any, *inputs: Any) -> Any:
        """The axis of the sampler."""
        mu, sd = inputs[-2:]
        return self.share * mu + (value - mu) * sd ** (self.share - 1)

    def log_jac_det(self, value: Any, *inputs: Any) -> Any:
        """Log of how much the variable moves with the axis."""
        return pt.zeros_like(value) + (1 - self.share) * pt.log(inputs[-1])


class CostShares(Transform):
    r"""Logs of coefficients as logs of what a request costs in all, and of ratios of its parts.

    With parts `A` of a cost (coefficients times sizes and workload, at the runs' means), each axis
    of the sampler is the log of a sum of stages, of one stage over the first of them, or of one
    part over the first of its stage. All of that shifts one log by others: the Jacobian is 1.
    """

    name = "shares"
    ndim_supp = 1

    def __init__(self, design: Design, law: Law) -> None:
        self.law, self.terms = law, tuple(p.name for p in population(law))
        data, drafters = design.data, design.drafters["drafter_params"]
        runs = design.verifiers.iloc[data["verifier_i"]]
        touched = runs["expert"] * coverage(runs["idle"], data["pass_tokens"])
        self.sizes = runs.assign(expert=touched).mean().to_dict()
        # A drafter without weights, or none, has no cost to take the log of.
        self.sizes["drafter"] = max(float(drafters.mean()) if len(drafters) else 0.0, WEIGHTLESS)
        lengths = {n: float(data[n].mean()) for n in ("prompt_tokens", "output_tokens")}
        self.workload = {"k": 0.0, **lengths}
        cycles, passes = float(data["cycles"].mean()), float(data["draft_passes"].mean())
        self.times = {"prefill": 1.0, "verify": cycles, "draft": cycles * max(passes, 1.0)}
        self._place()

    def _place(self) -> None:
        """Matrices (term, term) that sum and pick the parts of a stage, and stages of a group."""
        n, at = len(self.terms), {name: i for i, name in enumerate(self.terms)}
        here = [[[at[x] for x in names if x in at] for _, names in group] for group in GROUPS]
        groups = [[stage for stage in group if stage] for group in here]
        placed = {i for group in groups for stage in group for i in stage}
        groups += [[[i]] for i in range(n) if i not in placed]  # no cost: stands for itself
        self.stage, self.firsts, self.group = (np.zeros((n, n)) for _ in range(3))
        self.of_stage, self.of_group = (np.zeros((n, n)) for _ in range(2))
        self.later = np.ones(n)  # 0 for the first part of a stage
        for group in groups:
            first = group[0][0]
            for stage in group:
                self.later[stage[0]] = 0.0
                for i in stage:
                    self.stage[i, stage] = self.of_group[i, first] = 1.0
                    self.of_stage[i, stage[0]] = 1.0
                    self.firsts[i, [s[0] for s in group]] = 1.0
                    self.group[i, [j for s in group for j in s]] = 1.0
        opens = np.diag(self.of_group) == 1  # the first part of its group
        self.of_later_stage = self.of_stage * ~opens[None, :]
        self.opens, self.ratio = opens, np.eye(n)
        for name in RATIOS:
            if name in at:
                self.ratio[at[name], at["prefill_token_others"]] = 1.0

    def _log_unit_costs(self, logs: Any) -> Any:
        """Log of what a coefficient of 1 costs a request; 0 for those that are no cost."""
        at = {name: i for i, name in enumerate(self.terms)}
        ones = dict(zip(self.terms, np.eye(len(at)), strict=True))
        for name in RATIOS:
            if name in at:
                ones["prefill_token_others"] = ones["prefill_token_others"] + ones[name]
        curves = {n: pt.exp(logs[at[n]]) for n in CURVES if n in at}
        stages = self.law.stages(coefficients(ones | curves), self.sizes, self.workload)
        stages = stages._replace(verify_alone=stages.verify_alone + stages.experts)
        costs: Any = np.ones(len(at))
        for group in GROUPS:
            for stage, names in group:
                cost = getattr(stages, stage) * self.times[stage.split("_")[0]]
                own = np.isin(self.terms, names)
                costs = own * cost + ~own * costs
        return pt.log(costs)

    def forward(self, value: Any, *inputs: Any) -> Any:
        """The axes of the sampler."""
        parts = _dot(self.ratio, value) + self._log_unit_costs(value)
        stage, group = (pt.log(_dot(m, pt.exp(parts))) for m in (self.stage, self.group))
        within = parts - _dot(self.of_stage, parts)
        between = pt.where(self.opens, group, stage - _dot(self.of_group, stage))
        return pt.where(self.later == 1, within, between)

    def backward(self, value: Any, *inputs: Any) -> Any:
        """The logs of the coefficients."""
        axes = pt.vector("axes", shape=(len(self.terms),))
        within, between = axes * self.later, _dot(self.of_later_stage, axes)
        shares = within - pt.log(_dot(self.stage, pt.exp(within)))
        shares += between - pt.log(_dot(self.firsts, pt.exp(between)))
        parts = _dot(self.of_group, axes) + shares - self._log_unit_costs(axes)
        logs = _dot(np.linalg.inv(self.ratio), parts)
        # One operator: merged with the gradients of all that follows, it would be repeated there.
        return OpFromGraph([axes], [logs])(value)

    def log_jac_det(self, value: Any, *inputs: Any) -> Any:
        """Zero: see above."""
        return pt.zeros(value.shape[:-1])


def _dot(matrix: np.ndarray, vector: Any) -> Any:
    """A product that needs no BLAS, for which PyTensor would look."""
    return (matrix * vector[None, :]).sum(axis=1)
