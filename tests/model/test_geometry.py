"""The sampler's axes: there and back, with the Jacobian that is claimed, and what they hold."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bayes_sd import Law
from bayes_sd.model.design import build_design, coefficients
from bayes_sd.model.priors import population
from bayes_sd.physics.law import PARTS
from bayes_sd.runs.schema import Runs

pytestmark = pytest.mark.sample  # imports PyMC and compiles
MACHINE = {"gb_per_s": 900.0, "tflops": 50.0, "dies": 2, "captured_tokens": 2.0}
PROMPTS = MACHINE | {"captured_tokens": 110.0}  # fewer than a prompt, more than a pass decodes
LAWS = [Law(), Law(parts=("host",)), Law(parts=PARTS)]


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("machine", [{}, MACHINE, PROMPTS], ids=["unknown", "sheet", "prompts"])
@pytest.mark.parametrize("verifier", ["dense-25m", "moe-e8k2", ["dense-25m", "moe-e8k2"]])
def test_axes_lead_back_and_have_unit_jacobian(
    runs: Runs, law: Law, verifier: Any, machine: dict[str, Any]
) -> None:
    import pytensor
    import pytensor.tensor as pt
    from pytensor.compile.mode import Mode

    from bayes_sd.model.geometry import CostShares

    some = runs.select(verifier=verifier)
    design = build_design(replace(some, table=some.table.assign(**machine)))
    axes = CostShares(design, law)
    told = set(law.terms) - design.untold
    launched = any(term.startswith("pace") for one in axes.sums for term in one.terms)
    assert launched == (machine is PROMPTS and "graphs" in law.parts)
    assert set(axes.terms) == told and bool(machine) == ("overhead_parallel" not in design.untold)
    at = pt.dvector()
    logs = axes.backward(at)
    slope = pt.linalg.slogdet(pytensor.gradient.jacobian(logs, at))[1]
    compiled = pytensor.function([at], [axes.forward(logs), slope], mode=Mode("py", None))
    x = np.random.default_rng(1).normal(size=len(told))
    back, log_jacobian = compiled(x)
    np.testing.assert_allclose(back, x, atol=1e-9)
    assert abs(log_jacobian) < 1e-9


def test_axes_of_several_machines_lead_back_with_the_jacobian_that_is_said(runs: Runs) -> None:
    """On one of them nothing drafts and no expert is: those axes are of the population."""
    import pytensor
    import pytensor.tensor as pt
    from pytensor.compile.mode import Mode

    from bayes_sd.model.geometry import CostShares

    table = runs.table
    plain = table[(table["drafter"] == "none") & table["verifier"].str.startswith("dense")]
    there = plain.assign(
        environment="there", machine="", **MACHINE, verifier=plain["verifier"] + " there"
    )
    here = table.assign(gb_per_s=230.0, tflops=24.0)
    design = build_design(replace(runs, table=pd.concat([here, there], ignore_index=True)))
    axes = CostShares(design, Law())
    untold = {t for t, loose in zip(axes.terms, axes.loose[:, 1], strict=True) if loose}
    assert {"overhead_experts", "overhead_draft_alone", "overhead_draft_others"} <= untold
    rng = np.random.default_rng(1)
    mean, width = rng.normal(-7, 1, axes.loose.shape), rng.uniform(0.2, 2, axes.loose.shape)
    inputs = (None, pt.as_tensor(mean), pt.as_tensor(width))
    at = pt.dvector()
    logs = axes.backward(at.reshape(axes.loose.shape), *inputs)
    slope = pt.linalg.slogdet(pytensor.gradient.jacobian(logs.ravel(), at))[1]
    outputs = [axes.forward(logs, *inputs), logs, slope, axes.log_jac_det(logs, *inputs)]
    x = rng.normal(size=axes.loose.shape)
    back, values, found, said = pytensor.function([at], outputs, mode=Mode("py", None))(x.ravel())
    np.testing.assert_allclose(back, x, atol=1e-9)
    assert found == pytest.approx(said) and abs(said) > 0.1
    loose = (values - mean)[axes.loose] / width[axes.loose]
    np.testing.assert_allclose(loose, x[axes.loose])


@pytest.mark.parametrize("machine", [{}, PROMPTS], ids=["captured", "launched"])
def test_the_first_axis_is_the_log_of_what_a_request_costs(runs: Runs, machine: dict) -> None:
    """At the runs' means, without others: the sum that the law itself gives."""
    import pytensor.tensor as pt

    from bayes_sd.model.geometry import CostShares

    some = runs.select(verifier="dense-60m")
    law, design = Law(), build_design(replace(some, table=some.table.assign(**machine)))
    shares, priors = CostShares(design, law), design.told(population(law))
    logs = np.log([p.a for p in priors])
    axes = shares.forward(pt.as_tensor(logs)).eval()
    terms = design.all_terms(dict(zip(shares.terms, np.exp(logs), strict=True)))
    # The own sequence has the coefficients of those of others.
    terms |= {"overhead_token": 0.0, "read_keys": 0.0}
    at = {name: float(x[0]) for name, x in shares.at.items()}
    stages = law.stages(coefficients(terms), at, at)
    total = (
        stages.prefill_alone
        + at["verify"] * (stages.verify_alone + stages.fixed + stages.experts)
        + at["draft"] * stages.draft_alone
        + (stages.pace if machine else 0.0)
    )
    assert np.exp(axes[shares.terms.index("read_weights")]) == pytest.approx(total)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_centring_is_between_the_value_and_the_standardized_one(share: float) -> None:
    import pytensor
    import pytensor.tensor as pt
    from pytensor.compile.mode import Mode

    from bayes_sd.model.geometry import Centred

    x, mu, sd = np.array([0.3, -2.0]), 0.7, 0.2
    transform = Centred()
    inputs = (None, *(pt.as_tensor(each) for each in (mu, sd, np.array([share, share]))), None)
    value = transform.forward(x, *inputs).eval()
    if share in (0.0, 1.0):
        np.testing.assert_allclose(value, x if share else (x - mu) / sd)
    at = pt.dvector()
    back = transform.backward(at, *inputs)
    slopes = pytensor.gradient.grad(back.sum(), at)
    outputs = [back, slopes, transform.log_jac_det(at, *inputs)]
    back_, slope, log_jacobian = pytensor.function([at], outputs, mode=Mode("py", None))(value)
    np.testing.assert_allclose(back_, x)
    np.testing.assert_allclose(np.log(slope), log_jacobian, atol=1e-12)
