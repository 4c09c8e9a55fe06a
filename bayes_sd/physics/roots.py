"""Where functions of many numbers change sign."""

from typing import Any

import numpy as np

ROOT, MOST_STEPS = 1e-10, 200  # relative width of an interval that holds a root


def find_roots(function: Any, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Where ``function(x, index)`` changes sign between `low` and `high`; NaN where it does not.

    `index` says which elements `x` belongs to: only those not yet solved are asked again. By the
    method of Chandrupatla (Adv. Eng. Software 28, 1997): through three points where that is safe,
    else in the middle. Importing a library's takes longer than the answers that need it.
    """
    index = np.arange(low.size)
    with np.errstate(all="ignore"):
        a, b = np.array(low, float), np.array(high, float)
        f_a, f_b = (np.array(function(x, index), float) for x in (a, b))
        found = np.where(f_a == 0, a, np.where(f_b == 0, b, np.nan))
        index = np.flatnonzero(np.sign(f_a) * np.sign(f_b) < 0)
        a, b, f_a, f_b = (x[index] for x in (a, b, f_a, f_b))
        share, step = np.full(index.size, 0.5), 0
        while index.size:
            step += 1
            x = a + share * (b - a)
            f = np.asarray(function(x, index), float)
            same = np.sign(f) == np.sign(f_a)
            c, f_c = np.where(same, a, b), np.where(same, f_a, f_b)
            b, f_b = np.where(same, b, a), np.where(same, f_b, f_a)
            a, f_a = x, f
            best = np.where(abs(f_a) < abs(f_b), a, b)
            least = ROOT / 2 * abs(best) / abs(b - a)  # as a share of the interval
            done = (least >= 0.5) | (f == 0) | (step == MOST_STEPS)
            found[index[done]] = np.where(np.isnan(f), np.nan, best)[done]
            across, down = (a - b) / (c - b), (f_a - f_b) / (f_c - f_b)
            safe = (down**2 < across) & ((1 - down) ** 2 < 1 - across)
            bent = f_a / (f_b - f_a) * f_c / (f_b - f_c)
            bent += (c - a) / (b - a) * f_a / (f_c - f_a) * f_b / (f_c - f_b)
            share = np.clip(np.where(safe, bent, 0.5), least, 1 - least)
            index, a, b, f_a, f_b, share = (y[~done] for y in (index, a, b, f_a, f_b, share))
    return found
