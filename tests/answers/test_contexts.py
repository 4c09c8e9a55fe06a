"""Schedules by prompt and output length, and workloads that a server ran with."""

import numpy as np
import pandas as pd
import pytest
from questions import PLAIN, SD, SHORT, changed, rps

from bayes_sd.answers.servers import Server
from bayes_sd.errors import InputError
from bayes_sd.fit import Fit, reference
from bayes_sd.runs.load import Load
from bayes_sd.runs.machine import Machine

EAGLE = Server("Qwen3-32B", "eagle3", 3, 0.7, Machine("H100", gpus=2))


def test_every_length_has_the_schedule_it_would_have_alone(fit: Fit) -> None:
    load = Load(rps=[0.5, 1.0], prompt=[64, 256], output=[64, 96])
    answer = fit.contexts(load, SHORT, k=[2, 5], max_batch=8)
    assert [*answer.schedules] == [(64, 64), (64, 96), (256, 64), (256, 96)]
    alone = fit.schedule(Load(rps=[0.5, 1.0], prompt=256, output=64), SHORT, k=[2, 5], max_batch=8)
    assert answer.schedules[256.0, 64.0].to_vllm() == alone.to_vllm()
    assert answer.table.groupby(["prompt_tokens", "output_tokens"])["hi"].max().eq(8).all()
    assert dict(answer.draws.sizes)["lengths"] == 4
    assert np.diag(answer.loses).tolist() == [0.0] * 4


def test_it_says_where_one_table_stops_being_right() -> None:
    load = Load(concurrency=1, prompt=[128, 16384], output=256)
    answer = reference().contexts(load, EAGLE, k=[0, 1, 3, 5], max_batch=64, extrapolate=True)
    short, long = answer.schedules.values()
    best = {at: [k for lo, hi, k in s.to_vllm() for _ in range(lo, hi + 1)]
            for at, s in zip(answer.loses, (short, long), strict=True)}  # fmt: skip
    at = np.arange(64)
    followed = long.losses[np.searchsorted(long.candidates, best["128 + 256"]), at]
    own = long.losses[np.searchsorted(long.candidates, best["16384 + 256"]), at]
    lost = (followed / own - 1).max()
    assert answer.loses.loc["128 + 256", "16384 + 256"] == pytest.approx(lost)
    assert answer.one_for_all in str(answer)
    worse = answer.loses.loc[answer.one_for_all].max()
    assert ("stops being right" in str(answer)) == (worse > 0.02)
    ax = answer.plot()
    names = {text.get_text() for text in ax.texts}
    assert len(ax.lines) == 2 and names == {f"{name} tokens" for name in answer.loses}


def test_traffic_over_time_is_refused(fit: Fit) -> None:
    windows = pd.DataFrame({"rate_rps": [1, 2], "prompt_tokens": 64, "output_tokens": 64})
    with pytest.raises(InputError, match="not for traffic"):
        fit.contexts(Load.read(windows), SHORT, k=[2, 5])


def test_of_several_workloads_one_is_chosen(fit: Fit) -> None:
    servers = fit.tree["servers"].to_dataset()
    verifier = servers["verifier"].values == "dense-60m"
    names = np.where(verifier & (servers["drafter"].values == "none"), "chat", "")
    names = np.where(verifier & (names == ""), "math", names)
    several = changed(fit, servers=servers.assign(workload=("server", names.astype(object))))
    with pytest.raises(InputError, match=r"workloads chat, math; choose one with workload"):
        several.latency(rps(1.0), PLAIN)
    with pytest.raises(InputError, match=r"No run was of workload 'code'; known are chat, math"):
        several.latency(rps(1.0), Server("dense-60m", workload="code"))
    with pytest.raises(InputError, match="known are none"):
        fit.latency(rps(1.0), Server("dense-60m", workload="code"))
    named = several.latency(rps(1.0), Server("dense-60m", workload="chat")).table
    same = fit.latency(rps(1.0), PLAIN).table
    assert named["mean_p50_s"].item() == same["mean_p50_s"].item()
    assert str(Server("dense-60m", workload="chat")) == "dense-60m, plain, chat"
    assert SD.workload is None
