"""The public static-batch table: rows to cells. Nothing of the data is kept in this project.

One row is one batch of `n` equal requests on vLLM of 2024, no speculative decoding: its latency is
that of the whole batch, prompt and output are equally long. Times of one cell (hardware, devices,
model, length, batch size) measured twice differ by 1% and are averaged.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

DEFAULT = Path(__file__).parents[2] / "shared" / "traces" / "llm-inference-bench" / "runs.csv"
COLUMNS = {
    "Hardware": "hardware",
    "Num of Hardware": "devices",
    "Framework": "engine",
    "Model": "model",
    "Input Output Length": "tokens",
    "Batch Size": "batch",
    "Latency": "latency_s",
}
SYSTEM = ["hardware", "devices", "model"]
CELL = [*SYSTEM, "tokens", "batch"]
# What a batch size and a length cost shows only where there are several.
BATCH_SIZES, LENGTHS = 3, 3
MEMORY_SHARE = 0.9  # of the device, vLLM's default
BYTES = 2  # a weight, a key, a value


@dataclass(frozen=True)
class Shape:
    """What the law needs to know of a model; widths are heads times head size."""

    params_1e9: float
    layers: int
    kv_width: int
    positions: int = 4096  # or more
    query_width: int = 4096

    @property
    def kv_gb(self) -> float:
        """Keys and values of one token, GB."""
        return 2 * BYTES * self.layers * self.kv_width / 1e9


SHAPES = {
    "Llama-2-7b-hf": Shape(6.74, 32, 4096),
    "llama-7b": Shape(6.74, 32, 4096, 2048),
    "Meta-Llama-3-8B": Shape(8.03, 32, 1024),
    "Mistral-7B-v0.1": Shape(7.24, 32, 1024),
    "Mixtral-8x7B-v0.1": Shape(46.7, 32, 1024),
    "Qwen1.5-7B": Shape(7.72, 32, 4096),
    "Qwen2-7B": Shape(7.62, 28, 512, query_width=3584),
    "Qwen2-72B": Shape(72.7, 80, 1024, query_width=8192),
    "Llama-2-70b-hf": Shape(68.98, 80, 1024, query_width=8192),
    "Meta-Llama-3-70B": Shape(70.55, 80, 1024, query_width=8192),
    "DeciLM-7B": Shape(7.04, 32, 512),  # 1 to 4 heads a layer; vLLM stores 4
    "Aquila-7B": Shape(7.3, 32, 4096, 2048),
    "bloom-7b1": Shape(7.07, 30, 4096, 2048),
    "gpt-j-6b": Shape(6.05, 28, 4096, 2048),
    "opt-6.7b": Shape(6.66, 32, 4096, 2048),
}
GB = {  # of one device, as the table counts them
    "Nvidia A100 GPU": 40,
    "Nvidia H100 GPU": 80,
    "Nvidia GH200 GPU": 96,
    "AMD MI250 GPU": 128,
    "AMD MI300X GPU": 192,
    "Intel PVC GPU": 128,
    "Intel Max 1550": 128,
}
MIXTURES = ("Mixtral-8x7B-v0.1",)


def path() -> Path:
    """Where the table is: ``BAYES_SD_STATIC``, or beside the checkout."""
    return Path(os.environ.get("BAYES_SD_STATIC", DEFAULT))


def cells(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Cells of every system on vLLM with enough of them, and how many rows were set aside and why.

    Beyond the columns of the table: ``moe``, and ``room_tokens``, the tokens whose keys and values
    fit in memory.
    """
    rows = table.rename(columns=COLUMNS)
    rows = rows.assign(model=rows["model"].str.split("/").str[-1])
    # llama.cpp's latency falls as the batch grows, so it is not that of a whole batch.
    rows = rows[rows["engine"] == "vLLM"]
    positions = rows["model"].map({name: shape.positions for name, shape in SHAPES.items()})
    # Such requests are cut off after a token or so: 0.05 s for 2,048 tokens.
    too_long = 2 * rows["tokens"] > positions
    averaged = rows[~too_long].groupby(CELL, as_index=False)["latency_s"].agg(["mean", "size"])
    averaged = averaged.rename(columns={"mean": "latency_s", "size": "rows"})
    enough = averaged.groupby(SYSTEM)["tokens"].transform(
        lambda tokens: (tokens.value_counts() >= BATCH_SIZES).sum() >= LENGTHS
    )
    aside = {
        "longer than the model's positions": int(too_long.sum()),
        "averaged with another of their cell": int((averaged["rows"] - 1)[enough].sum()),
    }
    for (hardware, devices, model), system in averaged[~enough].groupby(SYSTEM):
        aside[f"too few batch sizes: {model}, {hardware} x{devices}"] = int(system["rows"].sum())
    kept = averaged[enough].reset_index(drop=True)
    shapes = [SHAPES[model] for model in kept["model"]]
    weights_gb = BYTES * pd.Series([shape.params_1e9 for shape in shapes], dtype=float)
    kv_gb = pd.Series([shape.kv_gb for shape in shapes], dtype=float)
    memory_gb = MEMORY_SHARE * kept["hardware"].map(GB) * kept["devices"]
    moe = kept["model"].isin(MIXTURES).astype(float)
    return kept.assign(moe=moe, room_tokens=(memory_gb - weights_gb) / kv_gb), aside
