"""LatencyModel, the way from runs to a Fit; and Fit, which answers questions."""

import warnings
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bayes_sd.answers import break_even as _break_even
from bayes_sd.answers import capacity as _capacity
from bayes_sd.answers import compare as _compare
from bayes_sd.answers import contexts as _contexts
from bayes_sd.answers import datatree as _datatree
from bayes_sd.answers import fitted as _fitted
from bayes_sd.answers import latency as _latency
from bayes_sd.answers import next_runs as _next_runs
from bayes_sd.answers import schedule as _schedule
from bayes_sd.errors import ConvergenceError, EvidenceWarning, InputError, one_of, require, whole
from bayes_sd.model.arrow import systems_of
from bayes_sd.model.design import Design, build_design
from bayes_sd.model.posterior import Posterior, assemble
from bayes_sd.model.priors import ALL, EFFECT_DIMS, EFFECTS, NOISE, SERVER_EFFECTS, TOGETHER, Prior
from bayes_sd.model.sample import MAX_MINUTES, Refitter, Sampling, sample
from bayes_sd.model.start import start
from bayes_sd.physics.law import FULL, Law
from bayes_sd.report import page as _page
from bayes_sd.runs.machine import Machine, sheet_of
from bayes_sd.runs.schema import Runs

if TYPE_CHECKING:
    import pymc as pm

REFERENCE = Path(__file__).with_name("reference.nc")
PACKAGES = ("bayes_sd", "pymc", "nutpie", "arviz", "numpy", "xarray")


@dataclass(frozen=True, eq=False, repr=False)
class Fit(Posterior):
    """A fitted latency model: posterior draws, the runs they come from, and answers.

    Every question takes a load, then servers, and gives an answer with ``draws``, ``table``,
    ``plot()`` and a sentence as ``str()``. In all of them `extrapolate` allows answers far outside
    of what was measured (sizes, lengths, requests in flight more than a factor of 4; draft lengths
    outside those measured), which are labelled "extrapolated", and `seed` is for what the posterior
    predictive adds to the posterior.

    Parameters
    ----------
    tree : xarray.DataTree
        Groups ``posterior`` (natural units), ``acceptance``, ``runs``, ``verifiers``, ``drafters``,
        ``servers``, and of newer fits ``sample_stats``; JSON in the attributes ``spec``,
        ``provenance`` and ``sampling``. :meth:`to_datatree` has the groups of ArviZ.

    Examples
    --------
    >>> import bayes_sd as bsd
    >>> fit = bsd.Fit.load("fit.nc")  # doctest: +SKIP
    >>> plain, eagle = bsd.Server("llama-8b"), bsd.Server("llama-8b", "eagle", k=3)
    >>> load = bsd.Load(rps=[1, 2, 4], prompt=512, output=256)
    >>> print(fit.compare(load, eagle, plain))  # doctest: +SKIP
    """

    latency = _latency.latency
    compare = _compare.compare
    break_even = _break_even.break_even
    schedule = _schedule.schedule
    contexts = _contexts.contexts
    capacity = _capacity.capacity
    next_runs = _next_runs.next_runs
    report = _page.report
    predict = _fitted.predict
    coefficients = _fitted.coefficient_table
    families = _fitted.families
    accuracy = _fitted.accuracy
    misfits = _fitted.misfits
    decisions = _fitted.decisions
    plot_collapse = _fitted.plot_collapse
    to_datatree = _datatree.to_datatree


def usual_prior(runs: Runs, public: bool | None = None) -> Fit | None:
    """The reference for the machine of these runs; by default for one verifier on a known one.

    One model does not tell what grows with size; of several the law's priors are as good.
    """
    machines, known = runs.table["machine"].unique(), runs.table["gb_per_s"].notna().all()
    usual = bool(known) and runs.table["verifier"].nunique() == 1
    one = machines[0] if len(machines) == 1 else None
    return reference(one) if (usual if public is None else public) else None


@cache
def reference(machine: str | Machine | None = None) -> Fit:
    """The shipped reference posterior: what public runs of many machines say of any of them.

    Of a `machine` that was among them, with an engine of today (A100 80GB, H100, H200, GB200), it
    says what its own runs do, of another host with another release. It answers by data sheets
    (``Server(..., environment=Machine("H100"))``) and is a prior for runs of one's own
    (``LatencyModel(prior=reference("H100"))``). Its ``provenance["card"]`` names what it holds.

    Parameters
    ----------
    machine : str or Machine, optional
        Of one not among them it says what it does of any, and warns of a name that is nearly one.

    Returns
    -------
    Fit

    Examples
    --------
    >>> import bayes_sd as bsd
    >>> h100, size = bsd.Machine("H100"), bsd.Size.read("Qwen3-8B")
    >>> plain = bsd.Server(size, environment=h100)
    >>> eagle = bsd.Server(size, bsd.Size.drafter("eagle3", "Qwen3-8B"), 3, 0.7, h100)
    >>> load = bsd.Load(concurrency=64, prompt=512, output=256)
    >>> bsd.reference("H100").compare(load, eagle, plain).table["support"].unique().tolist()
    ['data sheet']
    """
    return Fit.load(REFERENCE) if machine is None else reference().of_machine(sheet_of(machine))


@dataclass(frozen=True, repr=False)
class LatencyModel:
    r"""Hierarchical latency model of plain and speculative decoding, dense and MoE.

    .. math::
        L(B) = c_{1,prefill} + B\,c_{2,prefill} + \tfrac{g}{E}\,cycle(B),\quad B = \lambda L,\qquad
        cycle = \sqrt{read^2 + compute^2} + overheads + k\,draft

    as in arXiv 2605.15051, with costs in bytes and arithmetic over what the machine offers, see
    :class:`bayes_sd.Law`. Each stage has a factor of its verifier or drafter, each server a
    slowness and a crowding of its own, and each machine factors of its overheads and efficiencies;
    all are partially pooled. Means and spreads of end-to-end latency and TTFT are fitted jointly;
    an open-loop run cut before it had settled bounds its latency from below.

    Parameters
    ----------
    priors : tuple of Prior
        See ``print(model)``; change one with :meth:`with_prior`.
    server_effects : tuple of str
        What a server may differ in from its models' costs: ``("slowness", "crowding")``, or
        ``("slowness",)`` for sweeps taken back to back on one machine.
    law : Law
        Which parts the law has.
    pooling : {"partial", "none", "complete"}
        Whether verifiers and drafters scatter around the size laws by a learned amount, each stands
        for itself, or they and all servers obey the laws; new ones may then still lie off them as
        far as the priors say.
    censored : bool
        Whether runs past saturation count as lower bounds, or not at all.
    prior : Fit, optional
        Take the priors from what another fit, as :func:`bayes_sd.reference`, says of a machine that
        it has not seen.

    Examples
    --------
    >>> import bayes_sd as bsd
    >>> fit = bsd.LatencyModel().fit(bsd.read("runs/"), seed=1)  # doctest: +SKIP
    """

    priors: tuple[Prior, ...] = ALL
    server_effects: tuple[str, ...] = SERVER_EFFECTS
    law: Law = FULL
    pooling: str = "partial"
    censored: bool = True
    prior: Posterior | None = None

    def __post_init__(self) -> None:
        if self.prior is not None:  # which the priors then say
            object.__setattr__(self, "priors", self.prior.as_priors(self.priors))
            object.__setattr__(self, "prior", None)
        own, allowed = self.server_effects, (SERVER_EFFECTS, SERVER_EFFECTS[:1])
        require("server_effects", own, own in allowed, " or ".join(map(str, allowed)))
        one_of("pooling", self.pooling, ("partial", "none", "complete"))

    def with_prior(self, name: str, **changes: Any) -> "LatencyModel":
        """The same model with one prior changed; names as shown by ``print(model)``.

        Parameters
        ----------
        **changes
            ``a`` (median of a log-normal, mean of a normal), ``b`` (its log-sd or sd), ``reason``.

        Examples
        --------
        >>> import bayes_sd as bsd
        >>> model = bsd.LatencyModel().with_prior("read_weights", a=1.1, b=0.2)
        """
        one_of("name", name, [p.name for p in self.priors])
        for change in changes:
            if change not in ("a", "b", "reason"):
                raise InputError(f"{name}: cannot change {change!r}, only a, b, reason.")
        priors = tuple(replace(p, **changes) if p.name == name else p for p in self.priors)
        return replace(self, priors=priors)

    def __repr__(self) -> str:
        lines = [
            "LatencyModel: L = prefill + B prefill' + g/E cycle(B), B = rate x L",
            f"parts: {', '.join(self.law.parts) or 'none'}; {self.pooling} pooling; servers differ "
            f"in {' and '.join(self.server_effects)}",
            "",
            f"{'prior':<24} {'90% interval':>20}  {'unit':<28} what it is, and why this prior",
        ]
        for p in self.used:
            low, high = p.interval()
            interval = f"{low:.2g} .. {high:.2g}"
            lines.append(f"{p.name:<24} {interval:>20}  {p.unit:<28} {p.meaning}: {p.reason}")
        for group in TOGETHER.values():
            names = ", ".join(f"{name}*" for name in group["names"])
            lines.append(f"correlation {group['correlation']:g} of {names}: {group['reason']}")
        return "\n".join([*lines, "", "next: model.fit(runs, seed=1)"])

    @property
    def used(self) -> tuple[Prior, ...]:
        """The priors of this law and pooling."""
        names = {*self.law.terms, *(p.name for p in (*NOISE, *EFFECTS))}
        if self.pooling == "none":
            names -= {"scatter_verifier", "scatter_drafter"}
        return tuple(p for p in self.priors if p.name in names)

    def design(self, runs: Runs) -> Design:
        """Levels and arrays of the runs that this model fits."""
        return build_design(runs, self.censored)

    def graph(self, design: Design, keep_runs: bool = False) -> "pm.Model":
        """PyMC model of a design; `keep_runs` keeps what the law says of every run."""
        from bayes_sd.model.graph import build

        return build(design, self.priors, self.server_effects, self.law, self.pooling, keep_runs)

    def build(self, runs: Runs) -> "pm.Model":
        """PyMC model of the steady runs, for those who want to look inside."""
        return self.graph(self.design(runs))

    def initial(self, design: Design) -> dict[str, np.ndarray]:
        """Where chains start: logs of the law's coefficients, and of those of each machine."""
        own = tuple(p for p in self.priors if p.name in self.law.terms)
        logs = [start(design, design.told(own, rows), self.law, rows) for rows in design.of_sites]
        alone = {"log_law": np.mean(logs, axis=0)}
        return alone if len(logs) == 1 else alone | {"log_environment": np.stack(logs, axis=1)}

    def refitter(self, runs: Runs) -> Refitter:
        """The model compiled so that refits without some runs cost sampling only."""
        design = self.design(runs)
        graph = self.graph(design, keep_runs=True)
        return Refitter.of(graph, design, self.initial(design))

    def _warn(self, design: Design) -> None:
        """Say what stays at its prior: acceptances of runs, and effects."""
        said = []
        prior = design.table[design.table["acceptance_from"] == "prior"]
        if len(prior):
            names = ", ".join(prior["source"].astype(str).unique()[:3])
            said.append(
                f"{len(prior)} runs ({names}) do not tell their acceptance, so a usual one is "
                "assumed: give acceptance_imposed, or counts of drafts and accepted tokens."
            )
        few = [f"one {name}" for name in EFFECT_DIMS if len(getattr(design, f"{name}s")) == 1]
        if few and self.pooling == "partial":
            only = " and ".join(few)
            said.append(f"Only {only} was measured: what is said of others rests on the priors.")
        for message in said:
            warnings.warn(message, EvidenceWarning, stacklevel=3)

    def fit(
        self,
        runs: Runs,
        *,
        seed: int = 1,
        draws: int = 1200,
        tune: int = 700,
        chains: int = 4,
        target_accept: float = 0.9,
        max_minutes: float = MAX_MINUTES,
        progress: bool | None = None,
    ) -> Fit:
        """Sample the posterior until it has converged, and return it, or refuse it.

        Parameters
        ----------
        runs : Runs
            Saturated ones are lower bounds.
        seed : int
            Equal seeds give equal draws.
        draws, tune, chains, target_accept : int, int, int, float
            Kept and discarded draws per chain, chains, and the step size target in (0, 1), of the
            first sample; where it does not converge, more are drawn with smaller steps.
        max_minutes : float
            No further sample is begun that would end later.
        progress : bool, optional
            Progress bar; by default on a terminal.

        Raises
        ------
        ConvergenceError
            If R-hat > 1.01, an effective sample size < 400, a divergence or a non-finite draw
            is found; carries ``fit`` and ``table``.
        EvidenceError
            If there is no steady run.

        Warns
        -----
        EvidenceWarning
            If an acceptance is assumed, if there is only one verifier, drafter or server, or if the
            law misses fitted runs (see :meth:`Fit.misfits`).
        """
        whole("seed", seed, 0, 2**32 - 1)
        if not isinstance(runs, Runs):
            raise InputError(f"runs = {type(runs).__name__}: must come from bayes_sd.read(...).")
        how = Sampling(draws, tune, chains, target_accept)
        design = self.design(runs)
        self._warn(design)
        initial, systems = self.initial(design), systems_of(design.data)
        sampled, convergence, used = sample(
            self.graph(design), how, seed, progress, initial, max_minutes, systems
        )
        steady = design.table[~design.table["saturated"]]
        provenance = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "environment": "; ".join(design.environments),
            "runs": len(steady),
            "requests": int(steady["requests"].sum()),
            "runs_censored": len(design.table) - len(steady),
            "runs_read": len(runs),
            "runs_not_steady": int(runs.table["saturated"].sum()),
            "versions": {name: version(name) for name in PACKAGES},
        }
        spec = asdict(self) | asdict(how) | {"seed": seed}
        attrs = {"provenance": provenance, "sampling": convergence.summary | used}
        fit = Fit(assemble(sampled, design, spec, attrs, seed).tree)
        if not convergence.nonfinite:
            fit = fit.with_columns(**_fitted.fitted_columns(fit, design.table))
        if convergence.complaints:
            told, times = " ".join(convergence.complaints), len(used["samples"])
            tried = f" after {times} samples of up to {convergence.draws} draws" * (times > 1)
            runs_needed = " or ".join(convergence.remedies) or "more runs"
            raise ConvergenceError(
                f"The fit did not converge{tried}: {told} Needed are {runs_needed}; more time "
                "(<<max_minutes>>) may do too.",
                fit,
                convergence.table,
            )
        for message in _fitted.misfits(fit):
            warnings.warn(message, EvidenceWarning, stacklevel=2)
        return fit
