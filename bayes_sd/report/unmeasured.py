"""Models and machines that nobody measured, as the page's explorer knows them."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bayes_sd.answers.servers import Resolved, Server, machine_facts, resolve
from bayes_sd.model import design
from bayes_sd.model.acceptance import normal_quantiles
from bayes_sd.model.posterior import LEVELS, Posterior
from bayes_sd.model.priors import DRAFTER_COSTS, ELSEWHERE_SD, HARDWARE, VERIFIER_COSTS
from bayes_sd.runs.checkpoint import known_models
from bayes_sd.runs.drafting import usual_rate
from bayes_sd.runs.machine import Machine, sheets
from bayes_sd.runs.sizes import GIGA, WEIGHTLESS, Size

METHODS = ("eagle3", "mtp", "ngram")
FACTS = ("gb_per_s", "tflops", "dies")
COLUMNS = 45  # of draws that they need whatever was measured
ANY = Machine("any", gb_per_s=1.0, tflops=1.0)


def unmeasured(fit: Posterior, place: Callable[[Any], int], k_most: int) -> dict[str, Any]:
    """Sizes of known models, data sheets, and draws of what a new one has; `place` keeps draws."""
    models = [_model(name) for name in known_models() if name not in fit.verifiers.index]
    stored = {m["sizes"]["bytes"] * 8 for m in models} | {*fit.servers["weight_bits"].dropna()}
    bits = sorted({design.WEIGHT_BITS, *stored})
    sizes = fit.verifiers.assign(total=fit.verifiers["shared"] + fit.verifiers["expert"])

    def where(facts: dict[str, Any], site: str) -> dict[str, Any]:
        known = fit.sites.index(site) if site in fit.sites else None
        own = None if known is None else fit.factors("environment", known, site, 0)
        return facts | {"label": site, "factors": own and [place(factor) for factor in own]}

    def drafts(machine: Any) -> list[dict[str, Any]]:
        return [machine_facts(fit, machine, Size(GIGA), k) for k in range(k_most + 1)]

    places = []
    for name in fit.environments:
        each = drafts(name)
        numbers: dict[str, Any] = {fact: float(each[0][fact]) for fact in FACTS}
        numbers |= {"name": name, "captured": [float(one["captured"]) for one in each]}
        places.append(where(numbers, fit.site_of(name)))
    machines = []
    for machine in map(Machine, sheets()) if sheets_help(fit) else ():
        tflops = [machine.tflops_at(each) for each in bits]
        sheet = {n: getattr(machine, n) for n in ("name", "gb_per_s", "dies", "memory_gb")}
        if None not in tflops:
            machines.append(where(sheet | {"tflops": tflops}, fit.site_of_machine(machine.name)))
    return {
        "models": models,
        "places": places,
        "machines": machines,
        "bits": bits,
        "captured": [float(one["captured"]) for one in drafts(ANY)] if machines else [],
        "law": {name: place(values) for name, values in fit.law_terms.items()},
        "scatter": {name: [*map(place, fit.scatter_of_new(name).T)] for name in LEVELS},
        "elsewhere_sd": ELSEWHERE_SD,
        "normal": place(normal_quantiles(fit.draws)),
        "moe": [*map(place, fit.moe_effect.T)],
        "family": fit.family,
        "hardware": [*HARDWARE.values()],
        "costs": {"verifier": VERIFIER_COSTS, "drafter": DRAFTER_COSTS},
        "ranges": {name: [sizes[name].min(), sizes[name].max()] for name in ("active", "total")},
    }


def sheets_help(fit: Posterior) -> bool:
    """Whether the fit knows what its own machines offer, without which no other compares."""
    return bool(fit.servers["gb_per_s"].notna().any())


def examples(fit: Posterior) -> Iterator[Resolved]:
    """One server of each kind that the page may be asked about, whose law it needs."""
    for size in (Size(GIGA), Size(GIGA, GIGA / 2, 8, 2)):
        anywhere: list[Any] = [*fit.environments, *[ANY] * sheets_help(fit)]
        for where in anywhere:
            yield resolve(fit, Server(size, environment=where))
            yield resolve(fit, Server(size, Size(GIGA / 10), 1, 0.5, where))


def _model(name: str) -> dict[str, Any]:
    """Sizes of a known model, and what drafts for it."""
    size, drafters = Size.read(name), []
    for method in METHODS:
        drafter = Size.public(method, name) or size
        rate = usual_rate(method, 0.0 if method in WEIGHTLESS else drafter.params)
        drafters.append({"name": method, "sizes": drafter.drafter_features(), "rate": rate})
    stored = design.machine(weight_bits=size.weight_bits or np.nan)
    sizes = size.features() | {n: float(stored[n]) for n in ("bytes", "drafter_bytes")}
    return {"name": name, "sizes": sizes, "pairs": drafters}
