"""Machines that nobody measured, answered by their data sheets."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from questions import NEW, PLAIN, SD, changed, in_flight, rps

from bayes_sd.answers.servers import Server
from bayes_sd.errors import EvidenceError, InputError
from bayes_sd.fit import Fit
from bayes_sd.runs.machine import Machine
from bayes_sd.runs.schema import Runs
from bayes_sd.runs.sizes import Size

OWN: dict[str, Any] = {"gb_per_s": 200.0, "tflops": 20.0}


@pytest.fixture(scope="module")
def sheet(fit: Fit) -> Fit:
    """The fit, its machine with a data sheet that stands for typical values."""
    servers = fit.tree["servers"].to_dataset()
    return changed(fit, servers=servers.assign({n: ("server", np.full(servers.sizes["server"], x))
                                                for n, x in OWN.items()}))  # fmt: skip


def mean_s(fit: Fit, server: Server, machine: Machine | None = None) -> np.ndarray:
    """Draws of the mean alone on a server."""
    answer = fit.latency(in_flight(1), replace(server, environment=machine), extrapolate=True)
    return answer.draws["mean_s"].values.ravel()


def test_a_machine_is_answered_only_by_a_fit_whose_own_data_sheet_is_known(fit: Fit) -> None:
    with pytest.raises(EvidenceError, match=r"2x H100 cannot be answered .*machine="):
        mean_s(fit, PLAIN, Machine("H100", 2))


def test_a_machine_like_the_measured_one_takes_as_long_and_is_less_sure(sheet: Fit) -> None:
    here, like = mean_s(sheet, NEW), mean_s(sheet, NEW, Machine("like it", **OWN))
    assert np.median(like) == pytest.approx(np.median(here), rel=0.25)
    assert np.log(like).std() > 1.5 * np.log(here).std()
    answer = sheet.latency(rps(0.5), replace(NEW, environment=Machine("like it", **OWN)))
    assert answer.table["support"].tolist() == ["data sheet"] and "data sheet" in str(answer)


def test_more_bandwidth_reads_faster_and_its_overheads_stay(sheet: Fit) -> None:
    def alone(times: float) -> float:
        card = Machine("card", gb_per_s=times * OWN["gb_per_s"], tflops=times * OWN["tflops"])
        return float(np.median(mean_s(sheet, PLAIN, card)))

    assert 2 * alone(10) > alone(1) / 2 > 0 and alone(10) < alone(2) < alone(1)


def test_fewer_bits_of_the_weights_are_read_sooner(sheet: Fit) -> None:
    card = Machine("card", **OWN)
    whole, packed = (
        np.median(mean_s(sheet, Server(Size(2e8, weight_bits=bits)), card)) for bits in (16, 4)
    )
    assert packed < whole


def test_a_model_that_does_not_fit_is_refused_with_the_numbers(sheet: Fit) -> None:
    small = Machine("small", **OWN, memory_gb=8)
    with pytest.raises(InputError, match="16 GB of weights do not fit into the 8 GB of small"):
        mean_s(sheet, Server(Size(8e9)), small)


def test_runs_of_another_machine_are_predicted_by_its_data_sheet_or_refused(
    fit: Fit, sheet: Fit, runs: Runs
) -> None:
    elsewhere = runs.table.assign(environment="a server", **{n: 2 * x for n, x in OWN.items()})
    foreign = Runs(elsewhere, runs.set_aside).select(verifier="dense-60m")
    with pytest.raises(EvidenceError, match=r"'a server' cannot be predicted.*machine= of both"):
        fit.predict(foreign)
    table = sheet.predict(foreign)
    assert set(table["support"]) == {"data sheet"}
    assert set(sheet.predict(runs.select(verifier="dense-60m"))["support"]) == {
        "fitted environment"
    }
    assert (table["low_s"] < table["predicted_s"]).all()


def test_a_drafter_counts_on_another_machine_too(sheet: Fit) -> None:
    card = Machine("card", **OWN)
    plain, sd = (mean_s(sheet, each, card) for each in (PLAIN, SD))
    assert np.median(plain / sd) == pytest.approx(
        np.median(mean_s(sheet, PLAIN) / mean_s(sheet, SD)), rel=0.3
    )


def test_a_schedule_does_not_leave_the_captured_graphs_unless_that_wins(sheet: Fit) -> None:
    servers, law = sheet.tree["servers"].to_dataset(), sheet.posterior["law"]
    ends = servers.assign(captured_tokens=("server", np.full(servers.sizes["server"], 32.0)))
    pace = law.isel(law_term=[0]).assign_coords(law_term=["pace_dense"]) * 0 + 0.05
    posterior = sheet.posterior.drop_dims("law_term").assign(law=xr.concat([law, pace], "law_term"))
    limited = changed(sheet, servers=ends, posterior=posterior)
    server, load = replace(SD, acceptance=[1.0] * 5), in_flight(4)
    how: Any = {"k": [0, 2, 5], "max_batch": 24, "extrapolate": True}
    free, bound = (fit.schedule(load, server, **how) for fit in (sheet, limited))
    assert free.beyond_graphs == 0 and "graphs" not in str(free)
    k = np.concatenate([[r["k"]] * (r["hi"] - r["lo"] + 1) for _, r in bound.table.iterrows()])
    past = np.arange(1, 25) * (k + 1) > 32
    assert past.any() == (bound.beyond_graphs > 0)
    wanted = np.concatenate([[r["k"]] * (r["hi"] - r["lo"] + 1) for _, r in free.table.iterrows()])
    assert (k <= wanted).all() and (k < wanted).any()


def test_a_file_that_names_no_machine_is_predicted_as_on_the_fitted_one(
    sheet: Fit, runs: Runs
) -> None:
    own = runs.select(verifier="dense-60m")
    assert own.table["gb_per_s"].isna().all()
    named = Runs(own.table.assign(**OWN), own.set_aside)
    said = [sheet.predict(each)["predicted_s"].to_numpy() for each in (own, named)]
    np.testing.assert_array_equal(*said)


def test_the_bits_of_a_measured_model_go_with_it_to_another_machine(sheet: Fit) -> None:
    servers, card = sheet.tree["servers"].to_dataset(), Machine("card", **OWN)
    four = servers.assign(weight_bits=("server", np.full(servers.sizes["server"], 4.0)))
    packed = changed(sheet, servers=four)
    assert np.median(mean_s(packed, PLAIN, card)) < np.median(mean_s(sheet, PLAIN, card))


def test_verifiers_of_one_machine_have_the_arithmetic_of_their_own_precision(sheet: Fit) -> None:
    servers = sheet.tree["servers"].to_dataset()
    eight = {"weight_bits": 8.0, "tflops": 2 * OWN["tflops"]}

    def packed(where: np.ndarray) -> Fit:
        """The fit, these servers' weights in eight bits."""
        here = {n: servers.get(n, xr.full_like(servers["tflops"], np.nan)) for n in eight}
        return changed(sheet, servers=servers.assign({n: here[n].where(~where, x)
                                                      for n, x in eight.items()}))  # fmt: skip

    names, everywhere = servers["verifier"], xr.full_like(servers["tflops"], True, dtype=bool)
    for own in names == "dense-60m", names != "dense-60m":
        mixed, alike = packed(own), packed(everywhere)
        for name in np.unique(names):
            fit = alike if own[names == name].all() else sheet
            asked = Server(str(name), None, 0)
            np.testing.assert_array_equal(mean_s(mixed, asked), mean_s(fit, asked))


def test_more_of_a_fitted_machine_is_that_machine(sheet: Fit) -> None:
    tables: Any = {}
    for name, row in (("servers", "server"), ("runs", "run")):
        table = sheet.tree[name].to_dataset()
        where = {"environment": "1 x GB200 / engine", "machine": "GB200"}
        tables[name] = table.assign({
            n: (row, np.full(table.sizes[row], x, object)) for n, x in where.items() if n in table
        })  # fmt: skip
    known = changed(sheet, **tables)
    more, other = (mean_s(known, NEW, Machine(name, 2, **OWN)) for name in ("GB200", "like it"))
    assert np.log(other).std() > 1.3 * np.log(more).std()
