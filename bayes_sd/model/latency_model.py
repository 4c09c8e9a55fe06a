"""LatencyModel: priors and choices, printable, and the way from traces to a Fit."""

import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from bayes_sd.errors import InputError, PriorWarning
from bayes_sd.inference.assemble import assemble
from bayes_sd.inference.fit import ConvergenceError, Fit
from bayes_sd.inference.gate import diagnose
from bayes_sd.inference.sample import Sampling, sample
from bayes_sd.inference.start import start
from bayes_sd.model.build import build, population
from bayes_sd.model.design import Design, build_design
from bayes_sd.model.effects import POOLINGS
from bayes_sd.model.priors import ALL, EFFECTS, NOISE, Prior
from bayes_sd.physics.costs import FULL, Law

if TYPE_CHECKING:
    import pymc as pm

    from bayes_sd.traces import Traces


@dataclass(frozen=True, repr=False)
class LatencyModel:
    r"""Hierarchical latency model of plain and speculative decoding, dense and MoE.

    .. math::
        L = C_1 + B\,C_2,\quad B = \lambda L,\qquad
        C_i = c_{i,prefill} + \tfrac{g}{E}(c_{i,verify} + k\,c_{i,draft})

    Each stage cost is (overhead + slope x size x length) x a factor of its verifier or drafter, and
    each server has a speed and a capacity of its own; all factors are partially pooled. Mean
    end-to-end latency and TTFT (their difference is TPOT's mean) and the spread of both are
    fitted jointly over all runs; an open-loop run that was cut before it had settled says that its
    latency is at least what it showed.

    Parameters
    ----------
    priors : tuple of Prior
        See ``print(model)``; change one with :meth:`with_prior`.
    server_effects : tuple of str
        What a server may differ in from its models' costs: ``("speed", "capacity")``, or
        ``("speed",)`` for sweeps taken back to back on one machine.
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
    >>> print(bsd.LatencyModel())                       # doctest: +ELLIPSIS
    LatencyModel...
    >>> fit = bsd.LatencyModel().fit(bsd.read_traces("runs/"), seed=1)     # doctest: +SKIP
    """

    priors: tuple[Prior, ...] = field(default=ALL)
    server_effects: tuple[str, ...] = ("speed", "capacity")
    law: Law = FULL
    pooling: str = "partial"
    censored: bool = True

    def __post_init__(self) -> None:
        if self.server_effects not in (("speed",), ("speed", "capacity")):
            raise InputError(
                f"server_effects = {self.server_effects!r}: "
                "must be ('speed', 'capacity') or ('speed',)."
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
        >>> model = bsd.LatencyModel().with_prior("s_pass", a=5e-4, b=0.5, reason="4 TB/s card")
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
        parts = ", ".join(self.law.parts) or "none"
        lines = [
            "LatencyModel: L = C1 + B C2, B = rate x L;  C = prefill + g/E (verify + k draft)",
            f"parts: {parts}; {self.pooling} pooling; servers differ in "
            + " and ".join(self.server_effects),
            "",
            f"{'prior':<18} {'90% interval':>22}  {'unit':<27} what it is, and why this prior",
        ]
        for p in self.used:
            low, high = p.interval()
            lines.append(
                f"{p.name:<18} {f'{low:.2g} .. {high:.2g}':>22}  {p.unit:<27} "
                f"{p.meaning}: {p.reason}"
            )
        return "\n".join([*lines, "", "next: model.fit(traces, seed=1)"])

    @property
    def used(self) -> tuple[Prior, ...]:
        """The priors of this law and pooling."""
        names = {p.name for p in (*population(self.law), *NOISE)}
        effects = {p.name for p in EFFECTS}
        if self.pooling == "none":
            effects -= {"tau_verifier", "tau_drafter"}
        return tuple(p for p in self.priors if p.name in names | effects)

    def design(self, traces: "Traces") -> Design:
        """Arrays of the runs that this model fits."""
        return build_design(traces, self.censored)

    def graph(self, design: Design, keep_runs: bool = False) -> "pm.Model":
        """PyMC model of a design; `keep_runs` as in :func:`bayes_sd.model.build.build`."""
        return build(
            design,
            self.priors,
            self.server_effects,
            law=self.law,
            pooling=self.pooling,
            keep_runs=keep_runs,
        )

    def start(self, design: Design) -> dict[str, Any]:
        """Where chains start."""
        terms = {p.name for p in population(self.law)}
        own = tuple(p for p in self.priors if p.name in terms)
        return {"log_law": start(design, own, self.law)}

    def _warn(self, design: Design) -> None:
        """Say which effects the runs cannot tell, so that they stay at their priors."""
        few = [
            f"tau_{level} ({len(names)} {level})"
            for level, names in ((n, design.levels[n]) for n in ("verifier", "drafter", "system"))
            if len(names) < 2 and names != ["(no drafter)"] and self.pooling == "partial"
        ]
        if few:
            warnings.warn(
                f"{', '.join(few)} cannot be learned from one and stays at its prior; what is "
                "said of new ones rests on that prior.",
                PriorWarning,
                stacklevel=3,
            )

    def build(self, traces: "Traces") -> "pm.Model":
        """PyMC model of the steady runs of `traces`, for those who want to look inside.

        Parameters
        ----------
        traces : Traces

        Returns
        -------
        pymc.Model

        Raises
        ------
        EvidenceError
            If there is no steady run.
        """
        return self.graph(self.design(traces))

    def fit(
        self,
        traces: "Traces",
        *,
        seed: int = 1,
        draws: int = 1200,
        tune: int = 1000,
        chains: int = 4,
        target_accept: float = 0.9,
        sampler: str = "auto",
        adaptation: str = "diag",
        progress: bool | None = None,
    ) -> Fit:
        """Sample the posterior and return it, or refuse it.

        Parameters
        ----------
        traces : Traces
            Runs; saturated ones are lower bounds.
        seed : int
            Equal seeds give equal draws.
        draws, tune, chains : int
            Kept and discarded draws per chain, and chains.
        target_accept : float
            Step size target in (0, 1).
        sampler : {"auto", "nutpie", "pymc"}
            "auto" is nutpie, or PyMC's NUTS where nutpie is not installed.
        adaptation : {"diag", "low_rank"}
            nutpie's mass matrix; "low_rank" where many runs leave coefficients correlated.
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
        PriorWarning
            If there is only one verifier, drafter or server, whose scatter stays at its prior.
        """
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise InputError(f"seed = {seed!r}: must be a whole number from 0 to 2^32 - 1.")
        design = self.design(traces)
        self._warn(design)
        how = Sampling(draws, tune, chains, target_accept, sampler, adaptation)
        tree, used = sample(self.graph(design), how, seed, progress, self.start(design))
        convergence = diagnose(tree)
        fit = assemble(tree, design, traces, self, how, seed, used, convergence)
        if convergence.complaints:
            raise ConvergenceError(fit, convergence)
        return fit
