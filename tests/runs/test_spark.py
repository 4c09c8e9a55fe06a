"""The same expression on a real Spark; of a log there, only the statistics of windows come here.

    uv run --with "pyspark>=4,<5" pytest -n 0 -m spark tests/runs/test_spark.py

It needs Java 17 and starts Spark on two threads of this machine; the default run leaves it out.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ibis
import pandas as pd
import pytest
from test_logs import made, read, same

import bayes_sd as bsd
from bayes_sd.runs import logs

pytestmark = [
    pytest.mark.spark,
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    """Ibis on a Spark session of its own."""
    sql = pytest.importorskip("pyspark.sql")
    assert subprocess.run(["java", "-version"], check=False, capture_output=True).returncode == 0
    local = {"spark.ui.enabled": "false", "spark.sql.session.timeZone": "UTC"}
    local |= dict.fromkeys(("spark.driver.host", "spark.driver.bindAddress"), "127.0.0.1")
    local |= {"spark.sql.shuffle.partitions": "2"}
    session = sql.SparkSession.builder.master("local[2]").config(map=local).getOrCreate()
    yield ibis.pyspark.connect(session)
    session.stop()


def stored(spark: Any, log: pd.DataFrame, path: Path) -> Any:
    """A log that lies in Spark."""
    log.to_parquet(path, index=False)
    return spark.read_parquet(path)


def test_spark_and_duckdb_give_the_same_runs_and_traffic(spark: Any, tmp_path: Path) -> None:
    log = made()
    log = log.assign(timestamp=pd.to_datetime(log["timestamp"], unit="s").astype("datetime64[us]"))
    log = log.assign(drafts=10.0, drafted_tokens=30.0, accepted_tokens=15.0)
    server = {"drafter": "d", "drafter_params": 1e9, "draft_tokens": 3}
    table = stored(spark, log, tmp_path / "log.parquet")
    same(read(table, **server), read(log, **server))
    ours, theirs = bsd.Load.read(table, 50.0), bsd.Load.read(log, 50.0)
    pd.testing.assert_frame_equal(ours.windows, theirs.windows, rtol=1e-9)


def test_faults_are_found_there_too(
    spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = made()
    log.loc[1990:, ["e2e_s", "ttft_s", "output_tokens"]] = None
    log.loc[3, "output_tokens"] = 0
    log.loc[[5, 6], "prompt_tokens"] = -1
    log = pd.concat([log, log.iloc[40:43]]).astype({"timestamp": str})
    monkeypatch.setattr(logs, "AT_A_TIME", 700)
    found = read(stored(spark, log, tmp_path / "log.parquet"))
    expected = read(log.sort_values("timestamp", ignore_index=True))
    same(found, expected)
    assert found.table["incomplete"].sum() == 10 and found.table["failed"].sum() == 1
    rule = "must be a finite number of at least 1; 2 rows are like this"
    copies = "a request was there before with the same values; it counts once; 3 rows are like this"
    reasons = set(found.set_aside["reason"])
    assert reasons == {f"prompt_tokens is -1; it {rule}", copies}
