"""LatencyModel: priors and choices, printable, and the way from runs to a Fit."""

import warnings
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from bayes_sd.answers.fitted import fitted_columns
from bayes_sd.errors import ConvergenceError, EvidenceWarning, InputError
from bayes_sd.fit import Fit
from bayes_sd.model.design import Design, build_design
from bayes_sd.model.graph import POOLINGS, build, population
from bayes_sd.model.posterior import assemble
from bayes_sd.model.priors import ALL, EFFECTS, NOISE, SERVER_EFFECTS, Prior
from bayes_sd.model.refit import Refitter, compile_refits
from bayes_sd.model.sample import Sampling, diagnose, sample, start
from bayes_sd.physics.law import FULL, Law
from bayes_sd.runs.schema import Runs

if TYPE_CHECKING:
    import pymc as pm

PACKAGES = ("bayes_sd", "pymc", "nutpie", "arviz", "numpy", "xarray")


@dataclass(frozen=True, repr=False)
class LatencyModel:
    r"""Hierarchical latency model of plain and speculative decoding, dense and MoE.

    .. math::
        L = C_1 + B\,C_2,\quad B = \lambda L,\qquad
        C_i = c_{i,prefill} + \tfrac{g}{E}(c_{i,verify} + k\,c_{i,draft})

    Each stage cost is (overhead + slope x size x length) x a factor of its verifier or drafter, and
    each server has a slowness and a crowding of its own; all factors are partially pooled. Mean
    end-to-end latency and TTFT (their difference is TPOT's mean) and the spread of both are
    fitted jointly over all runs; an open-loop run that was cut before it had settled says that its
    latency is at least what it showed.

    Parameters
    ----------
    priors : tuple of Prior
        See ``print(model)``; change one with :meth:`with_prior`.
    server_effects : tuple of str
        What a server may differ in from its models' costs: ``("slowness", "crowding")``, or
        ``("slowness",)`` for sweeps taken back to back on one machine.
    law : Law
        Which parts the latency law has, see :class:`bayes_sd.Law`. With tiles, the tokens of a
        measured run's passes are those that its own latency implies (Little).
    pooling : {"partial", "none", "complete"}
        Whether verifiers and drafters scatter around the size laws by an amount that is learned,
        each stands for itself, or they and all servers obey the laws exactly; a new one may then
        lie off them as far as the priors say, which no run can correct.
    censored : bool
        Whether runs past saturation count as lower bounds, or not at all.

    References
    ----------
    arXiv 2605.15051, equations (1)-(4).

    Examples
    --------
    >>> import bayes_sd as bsd
    >>> print(bsd.LatencyModel())  # doctest: +ELLIPSIS
    LatencyModel...
    >>> fit = bsd.LatencyModel().fit(bsd.read("runs/"), seed=1)  # doctest: +SKIP
    """

    priors: tuple[Prior, ...] = field(default=ALL)
    server_effects: tuple[str, ...] = SERVER_EFFECTS
    law: Law = FULL
    pooling: str = "partial"
    censored: bool = True

    def __post_init__(self) -> None:
        if self.server_effects not in (SERVER_EFFECTS[:1], SERVER_EFFECTS):
            raise InputError(
                f"server_effects = {self.server_effects!r}: must be {SERVER_EFFECTS} or "
                f"{SERVER_EFFECTS[:1]}."
            )
        if self.pooling not in POOLINGS:
            raise InputError(f"pooling = {self.pooling!r}: must be one of {', '.join(POOLINGS)}.")

    def with_prior(self, name: str, **changes: Any) -> "LatencyModel":
        """The same model with one prior changed.

        Parameters
        ----------
        name : str
            A name shown by ``print(model)``.
        **changes
            ``a`` (median of a log-normal, mean of a normal), ``b`` (its log-sd or sd), ``reason``.

        Raises
        ------
        InputError
            If no prior has this name, or a change is not allowed.

        Examples
        --------
        >>> import bayes_sd as bsd
        >>> model = bsd.LatencyModel().with_prior("weights_per_pass", a=5e-4, b=0.5)
        """
        known = [p.name for p in self.priors]
        if name not in known:
            raise InputError(f"No prior is called {name!r}; known: {', '.join(known)}.")
        allowed = ("a", "b", "reason")
        wrong = [change for change in changes if change not in allowed]
        if wrong:
            raise InputError(f"{name}: cannot change {wrong[0]!r}, only {', '.join(allowed)}.")
        priors = tuple(replace(p, **changes) if p.name == name else p for p in self.priors)
        return replace(self, priors=priors)

    def __repr__(self) -> str:
        lines = [
            "LatencyModel: L = C1 + B C2, B = rate x L;  C = prefill + g/E (verify + k draft)",
            f"parts: {', '.join(self.law.parts) or 'none'}; {self.pooling} pooling; servers differ "
            f"in {' and '.join(self.server_effects)}",
            "",
            f"{'prior':<24} {'90% interval':>20}  {'unit':<28} what it is, and why this prior",
        ]
        for p in self.used:
            low, high = p.interval()
            interval = f"{low:.2g} .. {high:.2g}"
            lines.append(f"{p.name:<24} {interval:>20}  {p.unit:<28} {p.meaning}: {p.reason}")
        return "\n".join([*lines, "", "next: model.fit(runs, seed=1)"])

    @property
    def used(self) -> tuple[Prior, ...]:
        """The priors of this law and pooling."""
        names = {p.name for p in (*population(self.law), *NOISE)}
        effects = {p.name for p in EFFECTS}
        if self.pooling == "none":
            effects -= {"scatter_verifier", "scatter_drafter"}
        return tuple(p for p in self.priors if p.name in names | effects)

    def design(self, runs: Runs) -> Design:
        """Levels and arrays of the runs that this model fits."""
        return build_design(runs, self.censored)

    def graph(self, design: Design, keep_runs: bool = False) -> "pm.Model":
        """PyMC model of a design; `keep_runs` as in :func:`bayes_sd.model.graph.build`."""
        return build(
            design,
            self.priors,
            self.server_effects,
            law=self.law,
            pooling=self.pooling,
            keep_runs=keep_runs,
        )

    def build(self, runs: Runs) -> "pm.Model":
        """PyMC model of the steady runs, for those who want to look inside.

        Raises
        ------
        EvidenceError
            If there is no steady run.
        """
        return self.graph(self.design(runs))

    def _start(self, design: Design) -> dict[str, Any]:
        """Where chains start."""
        terms = {p.name for p in population(self.law)}
        return {
            "log_law": start(design, tuple(p for p in self.priors if p.name in terms), self.law)
        }

    def refitter(self, runs: Runs) -> Refitter:
        """The model compiled so that refits without some runs cost sampling only.

        Raises
        ------
        InputError
            If the law has tiles: its fits take the tokens of a pass from the run's own latency, and
            a run left out must not tell that.
        """
        if self.law.tile_tokens > 1:
            raise InputError(
                f"tile_tokens = {self.law.tile_tokens:g}: leave-out refits need a law without "
                "tiles; fit the rest and predict the others."
            )
        design = self.design(runs)
        return compile_refits(self.graph(design, keep_runs=True), design, self._start(design))

    def _warn(self, design: Design) -> None:
        """Say which runs are not used, and which effects stay at their priors."""
        if len(design.left_out):
            names = ", ".join(design.left_out["source"].astype(str).unique()[:3])
            warnings.warn(
                f"{len(design.left_out)} runs are left out since their acceptance is unknown "
                f"({names}): give acceptance_imposed, or counts of drafts and accepted tokens.",
                EvidenceWarning,
                stacklevel=3,
            )
        counts = {
            "verifier": len(design.verifiers),
            "drafter": len(design.drafters),
            "server": len(design.servers),
        }
        few = [f"scatter_{name}" for name, n in counts.items() if n == 1]
        if few and self.pooling == "partial":
            warnings.warn(
                f"{', '.join(few)} cannot be learned from one level and stay at their priors; what "
                "is said of new ones rests on these.",
                EvidenceWarning,
                stacklevel=3,
            )

    def fit(
        self,
        runs: Runs,
        *,
        seed: int = 1,
        draws: int = 1200,
        tune: int = 1000,
        chains: int = 4,
        target_accept: float = 0.9,
        progress: bool | None = None,
    ) -> Fit:
        """Sample the posterior and return it, or refuse it.

        Parameters
        ----------
        runs : Runs
            Saturated ones are lower bounds.
        seed : int
            Equal seeds give equal draws.
        draws, tune, chains : int
            Kept and discarded draws per chain, and chains.
        target_accept : float
            Step size target in (0, 1).
        progress : bool, optional
            Progress bar; by default on a terminal.

        Returns
        -------
        Fit

        Raises
        ------
        ConvergenceError
            If R-hat > 1.01, an effective sample size < 400, a divergence or a non-finite draw
            is found; carries ``fit`` and ``table``.
        EvidenceError
            If there is no steady run.
        InputError
            If a sampler setting is not allowed.

        Warns
        -----
        EvidenceWarning
            If runs are left out, or there is only one verifier, drafter or server.
        """
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise InputError(f"seed = {seed!r}: must be a whole number from 0 to 2^32 - 1.")
        if not isinstance(runs, Runs):
            raise InputError(f"runs = {type(runs).__name__}: must come from bayes_sd.read(...).")
        how = Sampling(draws, tune, chains, target_accept)
        design = self.design(runs)
        self._warn(design)
        sampled, used = sample(self.graph(design), how, seed, progress, self._start(design))
        convergence = diagnose(sampled)
        steady = design.table[~design.table["saturated"]]
        spec = {
            "priors": [asdict(p) for p in self.priors],
            "law": asdict(self.law),
            "pooling": self.pooling,
            "server_effects": list(self.server_effects),
            **asdict(how),
            "seed": seed,
        }
        provenance = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "environment": "; ".join(design.environments),
            "runs": len(steady),
            "requests": int(steady["requests"].sum()),
            "runs_censored": len(design.table) - len(steady),
            "runs_read": len(runs),
            "runs_not_steady": int(runs.table["saturated"].sum()),
            "versions": {name: _version(name) for name in PACKAGES},
        }
        attrs = {"provenance": provenance, "sampling": convergence.summary | used}
        fit = Fit(assemble(sampled, design, spec, attrs, seed).tree)
        if not convergence.nonfinite:
            fit = fit.with_columns(**fitted_columns(fit, design.table))
        if convergence.complaints:
            raise ConvergenceError(
                f"The fit did not converge: {' '.join(convergence.complaints)} Try more draws "
                "(<<draws>>, <<tune>>), a higher <<target_accept>>, or more runs.",
                fit,
                convergence.table,
            )
        return fit


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
