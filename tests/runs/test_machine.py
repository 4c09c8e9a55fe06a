"""Machines from data sheets, and what runs say of the machine that served them."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from runs_helpers import COLUMN_MAP, PLAIN, TABLE, changed, raw, without_detail, write

from bayes_sd import Machine
from bayes_sd.errors import InputError
from bayes_sd.runs.checkpoint import bits_of
from bayes_sd.runs.config import Configuration, configure
from bayes_sd.runs.machine import captured, named, sheets, site
from bayes_sd.runs.read import read

SERVER = {"verifier": "v", "verifier_params": 8e9, "draft_tokens": 0}
TABLE_ARGS: dict[str, Any] = {
    "columns": COLUMN_MAP, "verifier_params": 8e9, "draft_tokens": 2, "drafter": "d",
    "drafter_params": 1e8, "prompt_tokens": 512, "output_tokens": 128,
}  # fmt: skip


def configured(**changes: Any) -> Configuration:
    return configure(SERVER | changes)


@pytest.mark.parametrize(
    ("text", "sheet", "count"),
    [
        ("h100", "H100", None),
        ("NVIDIA H100 80GB HBM3", "H100", None),
        ("H100-SXM5 / vllm 0.24", "H100", None),
        ("NVIDIA H100 PCIe", "H100 PCIe", None),
        ("A100", "A100 80GB", None),
        ("NVIDIA-A100-SXM4-80GB", "A100 80GB", None),
        ("A100 80 GiB PCIe", "A100 80GB PCIe", None),
        ("NVIDIA A100-PCIE-40GB", "A100 40GB", None),
        ("NVIDIA GH200 480GB", "GH200 96GB", None),
        ("GB200 NVL72", "GB200", None),
        ("B200 192GB", "B200", None),
        ("Tesla T4", "T4", None),
        ("GeForce RTX4090", "RTX 4090", None),
        ("Intel Gaudi2", "Gaudi 2", None),
        ("2x NVIDIA H100 80GB HBM3 / vLLM", "H100", 2),
        ("8xL40S, vllm", "L40S", 8),
        ("AMD Instinct MI300X x 4", "MI300X", 4),
        ("H100x8", "H100", 8),
        ("TPU v6e-8", "TPU v6e", 8),
        ("H100 / 2x H100", "H100", 2),
        # Other cards, other memory, two cards, none.
        *((text, "", None) for text in ("H100 NVL", "V100-PCIE-32GB", "A100X", "A10G", "L40")),
        *((text, "", None) for text in ("RTX 3090 Ti", "RTX 4090 D", "A100 64GB", "GH200 144GB")),
        *((text, "", None) for text in ("A100 and H100", "A100 / H100", "Qwen3-30B-A3B on CPU")),
    ],
)
def test_a_name_is_that_of_one_card_or_of_none(text: str, sheet: str, count: int | None) -> None:
    assert named(text) == (sheet, count)


def test_every_sheet_is_found_by_its_own_name() -> None:
    assert [named(name)[0] for name in sheets()] == list(sheets())
    for name in sheets():
        four = Machine(name, gpus=4)
        assert four.gb_per_s == 4 * Machine(name).gb_per_s and str(four) == f"4x {name}"
        assert four.memory_gb == pytest.approx(4 * sheets()[name]["memory_bytes"] / 1e9)


def test_numbers_are_those_of_all_together() -> None:
    two = Machine("H100", gpus=2)
    assert (two.gb_per_s, two.memory_gb, two.dies) == (6700, 160, 2)
    assert [two.tflops_at(bits) for bits in (16, 8, 4, 6)] == [1978, 3958, 1978, 1978]
    assert Machine("MI250").dies == 2
    own = Machine("my card", gpus=2, gb_per_s=1000, tflops=200, memory_gb=48)
    assert (own.gb_per_s, own.memory_gb, own.dies, own.tflops_at(8)) == (2000, 96, 2, 400)
    slower = Machine("H100", gb_per_s=3000)
    assert (slower.name, slower.gb_per_s, slower.tflops_at(8)) == ("H100", 3000, 1979)
    cpu = Machine("two sockets", gb_per_s=400)
    assert cpu.tflops_at(16) is None and cpu.memory_gb is None
    cpu.fits(1e6)


def test_weights_of_fewer_bits_are_unpacked_where_there_are_no_units() -> None:
    assert Machine("V100").tflops_at(16) == 125  # it has no bf16
    assert Machine("V100").tflops_at(8) == 125
    assert Machine("A100").tflops_at(8) == 312  # unpacked
    assert Machine("A100").tflops_at("int8") == 624
    assert Machine("B200").tflops_at(4.5) == 9000
    assert Machine("H100").tflops_at(32) is None
    assert Machine("RTX PRO 6000").tflops_at(16) is None  # its sheet gives fp4 alone


def test_a_stated_precision_is_refused_without_units() -> None:
    assert Machine("H100").tflops_at("fp8") == 1979
    assert Machine("Gaudi 3").tflops_at("fp8") is None  # unknown, not absent
    with pytest.raises(InputError, match="A100 80GB computes in bf16, int8, not in fp8; if only"):
        Machine("A100").tflops_at("fp8")


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("H1000", {}, "'H1000' has no data sheet here; known are H100, .*give gb_per_s and"),
        ("A10G", {}, "'A10G' has no data sheet here; known are A10, "),
        ("a toaster", {"tflops": 1}, "'a toaster' has no data sheet here; known are A100 80GB, "),
        ("H100", {"gpus": 0}, "gpus = 0: must be a whole number from 1"),
        ("H100", {"gpus": 1.5}, "gpus = 1.5: must be a whole number"),
        ("H100", {"gb_per_s": 0}, "gb_per_s = 0: must be a positive finite number"),
        ("H100", {"tflops": math.inf}, "tflops = inf: must be a positive finite number"),
        ("H100", {"memory_gb": "80"}, "memory_gb = '80': must be a positive finite number"),
        ("2x H100", {}, "'2x H100' says 2 accelerators but gpus is 1"),
    ],
)
def test_bad_machines(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Machine(name, **given)


def test_a_model_that_does_not_fit_is_refused_with_the_numbers() -> None:
    Machine("H100", gpus=2).fits(141, 19)
    with pytest.raises(InputError, match="141 GB of weights and 20 GB of keys and values do not"):
        Machine("H100", gpus=2).fits(141, 20)


def test_graphs_are_captured_up_to_a_multiple_of_the_tokens_of_a_request() -> None:
    powers = [1, 2, 4, 8, 16, 32, 64]
    assert [captured(k, 64, powers) for k in (0, 1, 2, 5)] == [64, 64, 33, 36]
    assert [captured(k) for k in (0, 2, 7)] == [512, 498, 512]
    assert captured(9, 8) == captured(0, 0) == 0


@pytest.mark.parametrize(
    ("text", "bits"),
    [("fp8", 8), ("awq_marlin", 4.15), ("gptq-8bit", 8), ("modelopt_nvfp4", 4.5), ("m.w8a8", 8),
     ("Qwen3-32B-FP8", 8), ("m-INT4", 4.15), ("checkpoint8", None), ("m-bf16", 16)],
)  # fmt: skip
def test_bits_of_a_quantization_or_a_name(text: str, bits: float | None) -> None:
    assert bits_of(text) == bits


def test_columns_follow_from_the_name() -> None:
    c = configured(hardware="2x NVIDIA H100 80GB HBM3", engine="vLLM 0.24")
    assert c.environment == "2x NVIDIA H100 80GB HBM3 / vLLM 0.24"
    assert (c.machine, c.gpus, c.dies, c.gb_per_s, c.tflops) == ("H100", 2, 2, 6700, 1978)
    assert (c.weight_bits, c.captured_tokens) == (16, 512)
    c = configured(environment="H100 / vllm", drafter="d", draft_tokens=2, verifier="m-FP8")
    assert (c.captured_tokens, c.weight_bits, c.tflops) == (498, 8, 1979)
    c = configured(machine="my card", gb_per_s=2000, gpus=2)
    assert (c.environment, c.gb_per_s, c.dies) == ("2x my card", 2000, 2)
    assert math.isnan(c.tflops) and math.isnan(c.captured_tokens)


def test_nothing_is_known_of_an_unknown_machine() -> None:
    c = configured(environment="my card / vllm")
    assert (c.machine, c.gpus, c.dies, c.environment) == ("", 1, 1, "my card / vllm")
    assert all(math.isnan(x) for x in (c.gb_per_s, c.tflops, c.captured_tokens))
    # Their graphs are captured by other rules than vLLM's.
    for other in ("H100 / SGLang 0.5", "TPU v6e / vllm"):
        assert math.isnan(configured(environment=other).captured_tokens)


def test_given_numbers_win() -> None:
    given = {"gb_per_s": 3000, "tflops": 800, "dies": 4, "captured_tokens": "inf", "gpus": 1}
    c = configured(environment="8x H100", **given)
    assert {name: getattr(c, name) for name in given} == given | {"captured_tokens": math.inf}
    assert configured(environment="2x H100", machine="NVIDIA H100").gpus == 2
    assert configured(environment="2x H100", machine="A100").gpus == 1


@pytest.mark.parametrize(
    ("given", "environment"),
    [
        ({"machine": "H100"}, "H100"),
        ({"gpus": 2}, "2x accelerator"),
        ({"engine": "vllm", "machine": "H100"}, "vllm / H100"),
        ({"hardware": "H100", "engine": "vllm", "gpus": 2}, "H100 / vllm / 2x H100"),
        ({"hardware": "A100", "machine": "A100-SXM4-40GB"}, "A100 / A100 40GB"),
        ({"environment": "lab", "machine": "H100"}, "lab"),
        ({"environment": "lab", "machine": "H100", "gpus": 2}, "lab / 2x H100"),
        ({"environment": "lab / 2x H100", "machine": "H100", "gpus": 2}, "lab / 2x H100"),
        ({"environment": "H100 / vllm", "gpus": 2}, "H100 / vllm / 2x H100"),
        ({"environment": "8x H100 / vllm", "gpus": 2}, "8x H100 / vllm / 2x H100"),
        ({"environment": "2x H100 / vllm", "machine": "H100"}, "2x H100 / vllm"),
        ({"environment": "lab", "hardware": "H100"}, "lab"),
    ],
)
def test_an_environment_is_called_after_its_machine_or_its_number_of_accelerators(
    given: dict[str, Any], environment: str
) -> None:
    c = configured(**given)
    assert c.environment == environment
    again = configure({k: v for k, v in c.model_dump().items() if v is not None})
    assert again == c or math.isnan(c.gb_per_s)  # NaN is unlike NaN
    assert again.environment == environment


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"machine": "node17"}, "machine 'node17' has no data sheet here; known are"),
        ({"machine": "2x H100", "gpus": 4}, "machine '2x H100' says 2 accelerators but gpus is 4"),
        ({"gpus": 0}, "gpus must be a whole number of at least 1"),
        ({"weight_bits": 1}, "weight_bits must be a number of bits from 2 to 64, got 1"),
        ({"captured_tokens": -1}, "captured_tokens must be a number of at least 0 or 'inf'"),
        ({"gb_per_s": 0}, "gb_per_s must be a positive finite number"),
    ],
)
def test_bad_columns(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        configured(**given)


def test_tables_arguments_and_sidecars_give_a_machine(tmp_path: Path) -> None:
    table = read(TABLE, machine="H100", gpus="2", **TABLE_ARGS).table
    assert set(table.machine) == {"H100"} and set(table.gb_per_s) == {6700}
    assert set(table.environment) == {"2x H100"}
    column = read(TABLE.assign(machine=["H100", "A100"], gpus=[1, 2]), **TABLE_ARGS).table
    assert list(column.gb_per_s) == [3350, 4078] and list(column.dies) == [1, 2]
    assert list(column.environment) == ["H100", "2x A100 80GB"]
    run = write(tmp_path / "run.json", changed(raw(PLAIN), hardware=None))
    (tmp_path / "s.yaml").write_text("run.json: {machine: L4, gpus: 2, captured_tokens: 256}\n")
    row = read(run, config=tmp_path / "s.yaml").table.iloc[0]
    assert (row.machine, row.gb_per_s, row.captured_tokens) == ("L4", 600, 256)


def test_a_table_is_read_again_as_it_was(tmp_path: Path) -> None:
    first = read(TABLE, environment="lab", machine="H100", gpus=2, **TABLE_ARGS).table
    first.to_csv(tmp_path / "t.csv", index=False)
    columns = ["environment", "machine", *("gpus", "dies", "gb_per_s", "tflops", "weight_bits")]
    again = read(tmp_path / "t.csv").table
    pd.testing.assert_frame_equal(again[columns], first[columns])


def test_two_machines_are_not_one_environment() -> None:
    rows = TABLE.assign(gpus=[1, 2])
    assert list(read(rows, environment="H100", **TABLE_ARGS).table.environment) == [
        "H100",
        "H100 / 2x H100",
    ]
    # Under one name that is given for all, the one that the first row has is taken.
    rows = TABLE.assign(hardware=["H100", "A100"])
    runs = read(rows, environment="lab", **TABLE_ARGS)
    assert set(runs.table.machine) == {"H100"}
    (reason,) = runs.set_aside.reason
    assert reason.startswith("machine of 'lab' is A100 80GB here but H100 in table row 0")


SERVE = {"tensor_parallel_size": 2, "quantization": "fp8"}


@pytest.mark.parametrize(
    ("served", "expected"),
    [
        (SERVE, {"gpus": 2, "weight_bits": 8, "tflops": 3958, "captured_tokens": 512}),
        ({"tensor-parallel-size": 4}, {"gpus": 4, "gb_per_s": 13400, "weight_bits": 16}),
        ({"dtype": "float32"}, {"weight_bits": 32}),
        ({"enforce_eager": True}, {"captured_tokens": 0}),
        ({"enforce-eager": ""}, {"captured_tokens": 512}),
        ({"max_cudagraph_capture_size": 100}, {"captured_tokens": 96}),
        ({"compilation_config": {"cudagraph_capture_sizes": [1, 48]}}, {"captured_tokens": 48}),
        ({"compilation-config.max_cudagraph_capture_size": 64}, {"captured_tokens": 64}),
        ({"compilation_config": '{"cudagraph_mode": "NONE"}'}, {"captured_tokens": 0}),
    ],
)
def test_parameters_of_vllm_serve(
    served: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    data = without_detail(PLAIN, **served) | {"hardware": "H100", "engine": "vllm"}
    row = read(write(tmp_path / "run.json", data)).table.iloc[0]
    assert {name: row[name] for name in expected} == expected


def test_bad_parameters_of_vllm_serve(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(raw(PLAIN) | {"cudagraph_capture_sizes": [0]}))
    with pytest.raises(InputError, match=r"cudagraph_capture_sizes\[0\] must be a whole number"):
        read(path)
    path.write_text(json.dumps(raw(PLAIN) | {"gpus": 1, "tensor_parallel_size": 2}))
    with pytest.raises(InputError, match="gpus is 1 in the metadata but 2 in the parameters of"):
        read(path)


def test_counts_of_one_card_are_one_site_and_those_of_an_unknown_one_are_not() -> None:
    names = ("1 x GB200 / vLLM 0.24", "4 x GB200 / vLLM 0.24", "vLLM 0.24 / 2x GB200")
    assert {site(name, "GB200") for name in names} == {"GB200 / vLLM 0.24"}
    assert site("GB200 / vLLM 0.25", "GB200") != site(names[0], "GB200")
    unknown = ("2 x EPYC / vLLM", "8 x EPYC / vLLM")  # nothing says how many do more
    assert [site(name, "") for name in unknown] == [*unknown]
    assert site("2x my card", "my card") == "2x my card"
