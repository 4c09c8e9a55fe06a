"""Deployments: the same stage costs, placed otherwise than drafter and verifier on one server.

Each structure is a function ``(stages, system, load, its own terms) -> Placed``. What it adds is
assumed, never measured; where its terms vanish, the colocated server is left.
"""

from typing import Any, NamedTuple

from bayes_sd.physics.stages import Stages, scaled

PREFILL = ("c1_prefill", "c2_prefill")
VERIFY = ("c1_verify", "c1_experts", "c2_verify", "token")
DRAFT = ("c1_draft", "c2_draft")


class Placed(NamedTuple):
    """Stage costs in a deployment, and what a request spends away from the server, in seconds.

    A cycle takes as long as the slowest of `ways`. Seconds away are the request's own: they hold
    up nobody else, and no load stretches them. `before_s` precede the first token, `away_s` recur
    every cycle. `pool_s` is how long a separate prefill pool works on one request; others wait for
    it. `waits` is the share of first tokens that wait for the server's running cycles.
    """

    ways: tuple[Stages, ...]
    before_s: Any = 0.0
    pool_s: Any = 0.0
    away_s: Any = 0.0
    waits: Any = 1.0


def _scale(stages: Stages, names: tuple[str, ...], by: Any) -> Stages:
    return stages._replace(**{name: scaled(getattr(stages, name), by) for name in names})


def _at_once(stages: Stages, hidden: Any) -> tuple[Stages, ...]:
    """Drafts beside verification: ``V + D - w min(V, D)`` is the larger of two sums.

    Neither which of the two is shorter nor at which load that turns needs to be known.
    """
    return _scale(stages, DRAFT, 1 - hidden), _scale(stages, VERIFY, 1 - hidden)


def edge(
    stages: Stages,
    system: Any,
    load: Any,
    round_trip_s: Any,
    slowdown: Any = 1.0,
    offloaded: Any = 1.0,
) -> Placed:
    r"""Drafts made on the users' devices, verified by one shared server.

    .. math::
        \text{away} &= o\,(t_{trip} + k\, s\, c_{1,draft}) \quad \text{a cycle} \\
        c_{i,draft} &\leftarrow (1 - o)\, c_{i,draft}

    Parameters
    ----------
    stages, system, load
        Stage costs in seconds, sizes, and the load, as in :func:`bayes_sd.physics.law.outcome`.
    round_trip_s : array_like
        Network time a cycle: drafts up, verdict down.
    slowdown : array_like
        Drafting time on the device over that on the server `s`.
    offloaded : array_like
        Share of requests that draft on their device `o`; at 0 the colocated law.

    References
    ----------
    As in SLED (arXiv 2506.09397): devices draft, a shared server verifies their drafts in batches.

    Examples
    --------
    >>> placed = edge(Stages(c1_draft=0.001), {}, {"k": 5}, round_trip_s=0.02, slowdown=4.0)
    >>> round(placed.away_s, 3), placed.ways[0].c1_draft
    (0.04, 0.0)
    """
    k = load["k"]
    away = offloaded * (k > 0) * (round_trip_s + k * slowdown * stages.c1_draft)
    return Placed((_scale(stages, DRAFT, 1 - offloaded),), away_s=away)


def overlapped(
    stages: Stages, system: Any, load: Any, hidden: Any, interference: Any = 0.0
) -> Placed:
    r"""Drafting beside chunked verification on the same GPUs.

    .. math:: \text{cycle} = V + D - w \min(V, D), \qquad V = (1 + \iota)\, V_0

    with `V` and `D` the seconds of a cycle's verification and of its drafting, both at the load.

    Parameters
    ----------
    stages, system, load
        See :func:`edge`.
    hidden : array_like
        Share of the shorter of the two that is hidden behind the longer `w`; at 0, without
        interference, the colocated law.
    interference : array_like
        Verification that chunks and a drafter beside it add, as a share of its time.

    References
    ----------
    As in FASER (arXiv 2604.20503): verification in chunks that run beside the draft phase. Its
    draft lengths by request and its early pruning of rejected tokens are not in this law.

    Examples
    --------
    >>> costs = Stages(c1_verify=0.02, c1_draft=0.001)
    >>> ways = overlapped(costs, {}, {"k": 5}, hidden=1.0).ways
    >>> max(way.c1_verify + 5 * way.c1_draft for way in ways)  # drafts take 5 ms, all hidden
    0.02
    """
    drafting = load.get("draft_passes", load["k"]) > 0
    return Placed(_at_once(_scale(stages, VERIFY, 1 + interference * drafting), hidden))


def asynchronous(
    stages: Stages,
    system: Any,
    load: Any,
    sync_s: Any = 0.0,
    verify_slowdown: Any = 1.0,
    draft_slowdown: Any = 1.0,
    wasted: Any = 0.0,
) -> Placed:
    r"""Drafting and verifying at the same time, each on a group of GPUs of its own.

    .. math:: \text{cycle} = \max(V, D) + u \min(V, D) + t_{sync}

    with `V` and `D` at the load, each on its group. A cycle whose draft made ahead is of no use,
    since a token before it was rejected, drafts and verifies in turn.

    Parameters
    ----------
    stages, system, load
        See :func:`edge`.
    sync_s : array_like
        Exchange of drafts and verdicts a cycle, which all requests of a batch wait for.
    verify_slowdown : array_like
        Time of the verifier (prompts included) on its share of the GPUs over that on all.
    draft_slowdown : array_like
        Likewise of a draft pass, at k > 0.
    wasted : array_like
        Share of cycles whose draft made ahead is of no use `u`: ``1 - alpha^k`` for a single
        sequence of drafts, less for a tree. At 1, with no slowdown, the colocated law.

    References
    ----------
    As in SwiftSpec (arXiv 2506.11309): asynchronous and disaggregated drafting, which takes the
    draft off the critical path. Its tree of drafts enters only by `wasted`.

    Examples
    --------
    >>> costs = Stages(c1_verify=0.02, c1_draft=0.001)
    >>> ways = asynchronous(costs, {}, {"k": 5}, sync_s=0.001, wasted=0.2).ways
    >>> round(max(way.c1_verify + 5 * way.c1_draft for way in ways), 4)
    0.022
    """
    k = load["k"]
    loaded, drafting = load.get("draft_passes", k) > 0, k > 0
    apart = _scale(stages, PREFILL + VERIFY, 1 + (verify_slowdown - 1) * loaded)
    # With no draft to verify nobody waits for the drafter's group.
    apart = _scale(apart, DRAFT, draft_slowdown * drafting)
    wait = sync_s * drafting
    ways = _at_once(apart, 1 - wasted)
    return Placed(tuple(way._replace(c1_verify=way.c1_verify + wait) for way in ways))


def disaggregated(
    stages: Stages,
    system: Any,
    load: Any,
    transfer_s: Any = 0.0,
    bandwidth_gb_per_s: Any = float("inf"),
    separated: Any = 1.0,
    prefill_slowdown: Any = 1.0,
    decode_slowdown: Any = 1.0,
) -> Placed:
    r"""Prompts read on a pool of their own; their keys and values go to the pool that decodes.

    .. math::
        \text{before} &= z\,\Big(s_p\, c_{1,prefill} + t_{transfer} + \frac{kv\, P}{bw}\Big)
            + \frac{\rho\, p}{2 (1 - \rho)}, \qquad
            p = z\, s_p\, c_{2,prefill}, \quad \rho = \lambda p \\
        c_{i,prefill} &\leftarrow (1 - z)\, s_d\, c_{i,prefill}, \qquad
        c_{i,verify}, c_{i,draft} \leftarrow s_d\, c_{i,verify}, s_d\, c_{i,draft}

    The pool is a queue with constant service; of a share `z` at random its load is that of all
    requests with `z` times the work. Prompts read elsewhere stall no decoding.

    Parameters
    ----------
    stages, system, load
        See :func:`edge`; ``system["kv_gb"]`` are keys and values of one token.
    transfer_s : array_like
        Time of a transfer, whatever its size.
    bandwidth_gb_per_s : array_like
        Of the link between the pools; infinite for none of its time.
    separated : array_like
        Share of prompts read on the prefill pool `z`; at 0, without a decode slowdown, the
        colocated law.
    prefill_slowdown, decode_slowdown : array_like
        Times on each pool's GPUs over those measured.

    References
    ----------
    As in StreamServe (arXiv 2604.09562): prefill and decode on separate pools. Its adaptive depth
    is the best k for a load, which :meth:`bayes_sd.Fit.schedule` chooses under this structure.

    Examples
    --------
    >>> costs, load = Stages(c1_prefill=0.1, c2_prefill=0.08), {"k": 0, "prompt_tokens": 1000.0}
    >>> placed = disaggregated(costs, {"kv_gb": 1e-4}, load, bandwidth_gb_per_s=10.0)
    >>> round(placed.before_s, 3), placed.ways[0].c2_prefill
    (0.11, 0.0)
    """
    transfer = transfer_s + system["kv_gb"] * load["prompt_tokens"] / bandwidth_gb_per_s
    left = _scale(stages, PREFILL, 1 - separated)
    return Placed(
        (_scale(left, PREFILL + VERIFY + DRAFT, decode_slowdown),),
        before_s=separated * (prefill_slowdown * stages.c1_prefill + transfer),
        pool_s=separated * prefill_slowdown * stages.c2_prefill,
        waits=1 - separated,
    )
