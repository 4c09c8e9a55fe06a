"""The latency law on public static batches: vLLM without speculative decoding, others known.

    uv run benchmarks/static_batches.py [--json]        # half a minute

Prints the mean error of each law, in sample and held out, system by system and over all, and
whether the law with expert coverage does what it should. Skipped where the table is absent.

A batch of n requests gives each B = n - 1 others, so no Little's law is needed. Prompt and output
are equally long (g tokens), so costs of prefill and of decoding cannot be told apart. Laws, each
with the parts of those above it, fitted by least squares of relative errors, no coefficient below
0:

lines      a line in B for each length by itself: two coefficients a length
line       the paper's law: C1 = start + g pass, C2 = joining + g (token + 1.5 g context)
coverage   and a pass of a mixture of experts reads the experts it touches (one coefficient)
memory     and requests whose keys and values do not fit wait their turn (no coefficient)
kernel     and vLLM's first paged-attention kernel has a context cost of its own (one coefficient)
knee       and the first tokens of a pass are free (one coefficient: how many)

The last two are used by a system where the Bayesian information criterion asks for them, in every
fold anew. `batch` leaves out one batch size after the other, `inner` counts only those between
the smallest and the largest (the rest is extrapolated: without n = 1 the touched experts' share
is unknown), `length` leaves out one length after the other.
"""

import argparse
import json

import numpy as np
import pandas as pd
import static_data
from static_law import LAWS, NAMES, errors, fit, held_out

TARGET = 0.07
SLACK = 0.001  # an error larger by less is no worse
PLAIN = ("lines", "line", "coverage")
KINDS = ("fit", "batch", "inner", "length")


def study(rows: pd.DataFrame, laws: tuple[str, ...] = tuple(LAWS)) -> dict:
    """Mean errors of one system: each law in-sample and held out."""
    out = {name: rows[name].iloc[0] for name in static_data.SYSTEM} | {"cells": len(rows)}
    inner = ~rows["batch"].isin([rows["batch"].min(), rows["batch"].max()])
    for law in laws:
        fitted, batch = fit(law, rows), held_out(law, rows, "batch")
        out[f"{law}_fit"] = float(errors(fitted, rows).mean())
        out[f"{law}_batch"], out[f"{law}_inner"] = float(batch.mean()), float(batch[inner].mean())
        if law != "lines":  # they say nothing of another length
            out[f"{law}_length"] = float(held_out(law, rows, "tokens").mean())
    out["kernel"], out["knee"] = bool(fitted.form.kernel), fitted.form.knee
    # A dense model must gain nothing from experts that it does not have.
    as_moe = rows if rows["moe"].all() else rows.assign(moe=1.0, idle=0.75)
    experts = fit("coverage", as_moe)
    theta = dict(zip(NAMES, experts.theta["all"], strict=True))
    out["experts_share"] = float(theta["experts"] / (theta["experts"] + theta["pass"] + 1e-300))
    out["as_moe_fit"] = float(errors(experts, as_moe).mean())
    return out


def split(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mixtures of experts, dense models."""
    moe = table["model"].isin(static_data.EXPERTS)
    return table[moe], table[~moe]


def summaries(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Mean errors over systems, one table a set of systems."""
    moe, dense = split(table)
    sets = {
        "Mixtral, A100": moe[moe["hardware"].str.contains("A100")],
        "Mixtral, MI250 and MI300X": moe[moe["hardware"].str.contains("AMD")],
        "dense, A100": dense[dense["hardware"].str.contains("A100")],
        "dense, H100": dense[dense["hardware"].str.contains("H100 ")],
        "dense, A100, H100 and GH200": dense[dense["hardware"].str.contains("Nvidia")],
        "dense, all hardware": dense,
    }
    return {
        f"{name}; systems: {len(rows)}": pd.DataFrame(
            {law: {kind: rows[f"{law}_{kind}"].mean() for kind in KINDS if f"{law}_{kind}" in rows}
             for law in LAWS}
        ).reindex(KINDS)
        for name, rows in sets.items() if len(rows)
    }  # fmt: skip


def mixtral(table: pd.DataFrame, others: pd.DataFrame) -> list[str]:
    """The target for Mixtral, met or missed, in words."""
    said, (moe, dense) = [], split(table)
    for hardware in ("A100", "H100"):
        rows = moe[moe["hardware"].str.contains(hardware)]
        if rows.empty:
            said.append(f"Mixtral on {hardware} with vLLM: no rows, cannot be tested")
            continue
        now = {kind: rows[f"coverage_{kind}"].mean() for kind in KINDS}
        said.append(
            f"Mixtral on {hardware} with vLLM, from {rows['lines_fit'].mean():.1%} to at most "
            f"{TARGET:.0%}: {'met' if now['fit'] <= TARGET else 'missed'} by coverage, "
            f"{now['fit']:.1%}; held out: a length {now['length']:.1%}, an inner batch size "
            f"{now['inner']:.1%}, any batch size {now['batch']:.1%}"
        )
    for row in others.to_dict("records"):
        said.append(
            f"  beside it, {row['engine']} on {row['hardware']} x{row['devices']}: "
            f"{row['lines_fit']:.1%} lines, {row['line_fit']:.1%} line, "
            f"{row['coverage_fit']:.1%} coverage"
        )
    shares = ", ".join(
        f"{hardware} {share.min():.2f} to {share.max():.2f}"
        for hardware, share in moe.groupby("hardware")["experts_share"]
    )
    said.append(f"experts' share of a pass that touches all (of the weights 0.97): {shares}")
    said.append(
        f"control, the experts' term given to dense models: {dense['line_fit'].mean():.1%} "
        f"becomes {dense['as_moe_fit'].mean():.1%}"
    )
    return said


def no_worse(table: pd.DataFrame) -> list[str]:
    """The target for dense models, met or missed, in words."""
    dense, said = split(table)[1], []
    for law in ("coverage", "kernel", "knee"):
        for line, kind in (("line", "fit"), ("line", "length"), ("line", "batch"),
                           ("lines", "fit"), ("lines", "batch")):  # fmt: skip
            error, simple = dense[f"{law}_{kind}"], dense[f"{line}_{kind}"]
            gap = error - simple
            said.append(
                f"dense, {law} no worse than {line}, {kind}: "
                f"{'missed' if (gap > SLACK).any() else 'met'}; {error.mean():.1%} against "
                f"{simple.mean():.1%}, better in {(gap < -SLACK).sum()} and worse in "
                f"{(gap > SLACK).sum()} of {len(dense)}, at most by {100 * gap.max():.1f} points"
            )
    return said


def show(title: str, table: pd.DataFrame, laws: tuple[str, ...]) -> None:
    """Print one row a system, errors in percent."""
    names = [f"{law}_{kind}" for kind in ("fit", "batch", "length") for law in laws]
    names = [name for name in names if name in table]
    shown = table[[*static_data.SYSTEM, "cells"]].join(100 * table[names])
    shown = shown.drop(columns="engine") if shown["engine"].nunique() == 1 else shown
    print(f"\n{title}: mean error, %")
    print(shown.round(1).to_string(index=False))


def plain(table: pd.DataFrame) -> pd.DataFrame:
    """Nothing in place of what is not a number, as JSON has it."""
    return table.astype(object).where(table.notna(), None)


def main() -> None:
    """Print the table of systems, the summaries and the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not static_data.path().is_file():
        print(f"skipped: {static_data.path()} is absent (set BAYES_SD_STATIC)")
        return
    cells, aside = static_data.cells(pd.read_csv(static_data.path()))
    of_vllm = cells["engine"] == "vLLM"
    table = pd.DataFrame([study(rows) for _, rows in cells[of_vllm].groupby(static_data.SYSTEM)])
    # Other engines have neither vLLM's memory nor its kernels.
    rest = [study(rows, PLAIN) for _, rows in cells[~of_vllm].groupby(static_data.SYSTEM)]
    others = pd.DataFrame(rest, columns=None if rest else [*static_data.SYSTEM, "cells"])
    verdicts = mixtral(table, others) + no_worse(table)
    if arguments.json:
        out = {"vllm": plain(table).to_dict("records"), "others": plain(others).to_dict("records")}
        summary = {name: plain(rows).to_dict() for name, rows in summaries(table).items()}
        out |= {"summary": summary, "set_aside": aside, "verdicts": verdicts}
        print(json.dumps(out, default=np.generic.item, allow_nan=False))
        return
    print(f"vLLM: {len(table)} systems, {table['cells'].sum()} cells; rows set aside:")
    print("\n".join(f"  {rows:4d} {why}" for why, rows in aside.items()))
    show("vLLM", table, (*PLAIN, "kernel", "knee"))
    show("Mixtral with other engines", others, PLAIN)
    for name, summary in summaries(table).items():
        print(f"\n{name}; mean error, %")
        print((100 * summary).round(1).to_string(na_rep="-"))
    print("\n" + "\n".join(verdicts))


if __name__ == "__main__":
    main()
