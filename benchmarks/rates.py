"""An H200 at rates, predicted from what was measured of it at held concurrencies.

    uv run benchmarks/rates.py [--cache FOLDER] [--json]

The runs of ``traces/vllm-h200-rates`` are left out of the H200's own fit and of the reference;
predicted are they by that fit, by the reference of the H200 and by that of a machine nobody
measured. Printed are the median error, the share inside 90% intervals and their median width, how
often the sign of SD's effect is right where it differs from plain by more than 5%, and what the
draft length chosen loses in the mean of loads. The cache may be that of ``reference.py``.
"""

import argparse
import contextlib
import io
import json
from pathlib import Path

import curve
import pandas as pd
import reference

import bayes_sd as bsd
from bayes_sd.runs.read import corpus


def scores(table: pd.DataFrame) -> dict[str, float]:
    """As :func:`curve.scores`, whose cells are of one concurrency, of one rate."""
    return curve.scores(table.assign(concurrency=table["rate_rps"]))


def main() -> None:
    """Fit, predict and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path("bayes-sd-demo/reference"))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    seen = "H200 at concurrencies"
    names = [seen if name == "H200" else name for name in reference.SOURCES]
    with contextlib.redirect_stdout(io.StringIO()):
        known, own = reference.build(names, given.cache), reference.fit_of(seen, given.cache)
    runs = bsd.read(corpus("vllm-h200-rates"))
    asked = {"its own fit": own, "reference of H200": known.of_machine("H200"), "of any": known}
    rows = {name: scores(fit.predict(runs)) for name, fit in asked.items()}
    shown = pd.DataFrame(rows).T
    print(json.dumps(rows) if given.json else shown.to_string(float_format="{:.3f}".format))


if __name__ == "__main__":
    main()
