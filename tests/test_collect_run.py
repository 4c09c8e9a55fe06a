"""The collector against a stand-in server and load generator: what is kept, resumed, recorded."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from collect_helpers import configuration, plan_of, processes_naming, save, wait_for

import bayes_sd as bsd
from bayes_sd.collector import files, processes, run

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")


# `bayes-sd`, killed once a file is written but not yet renamed to a name that ends so.
KILLED_BEFORE_RENAME = """
import os, signal, sys
from bayes_sd.cli import main

suffix, rename = sys.argv.pop(1), os.replace

def replace(source, target):
    if str(target).endswith(suffix):
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)

os.replace = replace
main()
"""


def collected(folder: Path, plan: dict[str, Any], **more: Any) -> Any:
    return bsd.collect(save(folder, plan), folder / "runs", progress=False, **more)


def listening(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def runs_in(folder: Path) -> list[Path]:
    return sorted((folder / "runs").rglob("*.json"))


def test_a_plan_becomes_traces(tmp_path: Path) -> None:
    arms = [
        configuration(),
        configuration("sd", arm="sd", acceptance=0.8),
        configuration("k0", arm="sd_k0"),
    ]
    done = collected(tmp_path, plan_of(*arms))
    assert done.complete and done.new == 6 and not done.failures
    traces = bsd.read_traces(tmp_path / "runs")
    assert len(traces) == 6 and traces.set_aside.empty
    table = traces.runs.groupby(["arm", "draft_tokens"]).size().to_dict()
    assert table == {("plain", 0): 2, ("sd", 0): 2, ("sd", 3): 2}
    assert set(traces.runs.environment) == {"here / vllm 0.0.fake"}
    assert set(traces.select(draft_tokens=3).runs.acceptance_imposed) == {0.8}
    assert set(traces.select(arm="plain").runs.verifier_params) == {2 * (4 * 64**2 + 3 * 64 * 128)}
    assert not processes_naming(str(tmp_path))


def test_a_run_says_what_the_engine_saw(tmp_path: Path) -> None:
    collected(
        tmp_path, plan_of(configuration("sd", 1, arm="sd"), bench={"env": {"FAKE_SECONDS": 2.5}})
    )
    kept = json.loads(runs_in(tmp_path)[0].read_text())
    assert kept["engine_queue_time_count"] == 5 and kept["engine_queue_time_s_sum"] == 2.5
    assert kept["engine_drafts"] == 25 and kept["engine_accepted_tokens_1"] == 20
    assert kept["engine_running_mean"] == 2 and kept["engine_in_flight_mean"] == 3
    assert kept["engine_samples"] >= 1
    assert kept["startup_s"] > 0 and kept["probe_rps"] > 0
    assert kept["arm"] == "sd" and kept["seed"] and kept["order"] == 0
    assert "--speculative-config" in kept["engine_arguments"]
    assert str(tmp_path) not in json.dumps(kept)


def test_results_are_slim_and_complete(tmp_path: Path) -> None:
    collected(tmp_path, plan_of(configuration(count=1)))
    kept = json.loads(runs_in(tmp_path)[0].read_text())
    assert not {"generated_texts", "itls", "errors"} & set(kept)
    assert kept["start_times"][0] == 0
    assert kept["latencies"][0] == pytest.approx(kept["mean_e2el_ms"] / 1000, rel=1e-5)
    assert 0.0197 < kept["ttfts"][0] < 0.0218
    assert kept["ttfts"][0] == float(f"{kept['ttfts'][0]:.6g}")


def test_replicates_differ_in_seed_and_order_is_random_but_fixed(tmp_path: Path) -> None:
    cell = {"load": 0.3, "prompt": 16, "output": 8}
    many = [cell | {"replicate": i} for i in range(5)]
    collected(tmp_path, plan_of(configuration() | {"points": many}))
    found = [json.loads(f.read_text()) for f in runs_in(tmp_path)]
    assert len({f["seed"] for f in found}) == 5
    order = [f["replicate"] for f in sorted(found, key=lambda f: f["order"])]
    assert order != sorted(order) and sorted(order) == [0, 1, 2, 3, 4]
    second = tmp_path / "again"
    second.mkdir()
    collected(second, plan_of(configuration() | {"points": many}))
    again = [json.loads(f.read_text()) for f in runs_in(second)]
    assert [f["replicate"] for f in sorted(again, key=lambda f: f["order"])] == order


def test_a_second_call_does_nothing_and_more_points_are_added(tmp_path: Path) -> None:
    collected(tmp_path, plan_of(configuration(count=2)))
    before = {f: f.stat().st_mtime_ns for f in runs_in(tmp_path)}
    assert collected(tmp_path, plan_of(configuration(count=2))).new == 0
    more = collected(tmp_path, plan_of(configuration(count=3)))
    assert more.new == 1 and more.runs == 3
    assert all(f.stat().st_mtime_ns == t for f, t in before.items())
    log = (tmp_path / "runs/log.jsonl").read_text()
    assert log.count('"probed"') == 1


def test_another_plan_is_refused(tmp_path: Path) -> None:
    collected(tmp_path, plan_of(configuration(count=1)))
    with pytest.raises(bsd.InputError, match="another plan: args of plain"):
        collected(tmp_path, plan_of(configuration(count=1, args=["--enforce-eager"])))


@pytest.mark.parametrize("moment", ["at start", "in a run"])
def test_kill_9_leaves_nothing_running_and_it_goes_on(tmp_path: Path, moment: str) -> None:
    plan = plan_of(configuration(count=3), bench={"env": {"FAKE_SECONDS": 1.0}})
    path, out = save(tmp_path, plan), tmp_path / "runs"
    code = "from bayes_sd.cli import main; main()"
    command = [sys.executable, "-c", code, "collect", str(path), "-o", str(out)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as first:
        wait_for(lambda: processes_naming("fakes/server.py"))
        if moment == "in a run":
            wait_for(lambda: runs_in(tmp_path))
            wait_for(lambda: processes_naming(str(out)))
        first.send_signal(signal.SIGKILL)
    wait_for(lambda: not processes_naming(str(tmp_path)))
    had = len(runs_in(tmp_path))
    assert had < 3
    done = bsd.collect(path, out, progress=False)
    assert done.complete and done.new == 3 - had
    assert len(bsd.read_traces(out)) == 3
    assert not list(out.rglob("*.partial")) and not list(out.rglob("*.process"))


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    plan = plan_of(configuration(count=1))
    path, out = save(tmp_path, plan), tmp_path / "runs"
    # A process's record, then the file of a run: written, and killed before the rename.
    for suffix in (".process", ".json"):
        command = [sys.executable, "-c", KILLED_BEFORE_RENAME, suffix]
        command += ["collect", str(path), "-o", str(out)]
        killed = subprocess.run(command, stderr=subprocess.DEVNULL, check=False)
        assert killed.returncode == -signal.SIGKILL
        assert any(suffix in leftover.name for leftover in out.rglob("*.partial"))
        wait_for(lambda: not processes_naming(str(tmp_path)))
    mine = out / "plain" / "notes.partial"
    mine.write_text("not ours")
    done = bsd.collect(path, out, progress=False)
    assert done.complete and done.new == 1
    assert list(out.rglob("*.partial")) == [mine] and not list(out.rglob("*.process"))


def test_orphans_of_a_killed_guard_are_found(tmp_path: Path) -> None:
    plan = plan_of(configuration(count=2), bench={"env": {"FAKE_SECONDS": 3.0}})
    path, out = save(tmp_path, plan), tmp_path / "runs"
    code = "from bayes_sd.cli import main; main()"
    command = [sys.executable, "-c", code, "collect", str(path), "-o", str(out)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as first:
        wait_for(lambda: processes_naming(f"{tmp_path}/models/tiny --host"))
        wait_for(lambda: list(out.rglob("*.process")))
        record = wait_for(lambda: list(out.rglob("*.process")))[0]
        about = json.loads(record.read_text())
        # An orphan in the guard's session that no death signal reaches.
        environ = os.environ | {processes.TOKEN: about["token"]}
        sleeper = subprocess.Popen(["sleep", "987"], env=environ, start_new_session=True)
        os.kill(about["pid"], signal.SIGKILL)
        first.send_signal(signal.SIGKILL)
    innocent = subprocess.Popen(["sleep", "988"])
    done = bsd.collect(path, out, progress=False)
    assert done.complete
    assert sleeper.wait(10) in (-signal.SIGTERM, -signal.SIGKILL)
    assert innocent.poll() is None
    innocent.kill()
    innocent.wait()
    assert '"orphans ended"' in (out / "log.jsonl").read_text()


def test_sigterm_stops_the_server_cleanly(tmp_path: Path) -> None:
    plan = plan_of(configuration(count=3), bench={"env": {"FAKE_SECONDS": 5.0}})
    path, out = save(tmp_path, plan), tmp_path / "runs"
    code = "from bayes_sd.cli import main; main()"
    command = [sys.executable, "-c", code, "collect", str(path), "-o", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as first:
        wait_for(lambda: processes_naming("fakes/bench.py"))
        first.terminate()
        assert first.stderr is not None and "goes on from here" in first.stderr.read()
        assert first.wait(20) == 130
    assert not processes_naming(str(tmp_path))


def test_two_collectors_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        files.locked(tmp_path / "runs" / run.PRIVATE),
        pytest.raises(bsd.InputError, match="another collect is running"),
    ):
        collected(tmp_path, plan_of())


@pytest.mark.parametrize(
    ("mode", "missing", "reason"),
    [
        ("die", 2, "ended with status 1 at start: ValueError: num_speculative_tokens=9"),
        ("unhealthy", 2, "did not become healthy within 1 s"),
        ("wrong-name", 2, "serves somebody-else, not 'bad'"),
        ("die-after=7", 2, "the server died: the load generator ended"),
        ("die-after=12", 1, "the server died: the load generator ended"),
    ],
)
def test_a_bad_server_is_recorded_and_the_rest_goes_on(
    tmp_path: Path, mode: str, missing: int, reason: str
) -> None:
    bad = configuration("bad", env={"FAKE_SERVER": mode})
    server = {"startup_timeout_s": 1, "retries": 1} if mode == "unhealthy" else {"retries": 1}
    done = collected(tmp_path, plan_of(bad, configuration("good"), server=server))
    assert not done.complete and done.missing == missing
    assert reason in done.failures["bad/server"]
    found = [f.parent.name for f in runs_in(tmp_path)]
    assert found == ["bad"] * (2 - missing) + ["good"] * 2
    state = json.loads((tmp_path / "runs/bad/failures.state").read_text())
    assert state["server"]["attempts"] == 2
    assert not processes_naming(str(tmp_path))


def test_a_port_in_use_is_recorded(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = collected(tmp_path, plan_of(server={"port": port, "retries": 0}))
    assert f"port {port} of 127.0.0.1 is in use" in done.failures["plain/server"]
    assert collected(tmp_path, plan_of(server={"port": port})).complete


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("crash", "ended with status 1: RuntimeError: the fake crashed"),
        ("garbage", "not complete JSON"),
        ("all-fail", "requests failed: ConnectionError: gone"),
        ("reset", "went backwards"),
        ("hang", "did not end within 1 s"),
    ],
)
def test_a_bad_run_is_recorded_and_retried(tmp_path: Path, mode: str, reason: str) -> None:
    bench = {"warmup_requests": 0, "retries": 1, "timeout_s": 1 if mode == "hang" else 30}
    absolute = [{"rate_rps": 20, "prompt": 16, "output": 8}]
    bad = configuration() | {"points": absolute}
    done = collected(tmp_path, plan_of(bad, bench=bench | {"env": {"FAKE_BENCH": mode}}))
    assert reason in done.failures["plain/rps20_p16_g8_r0"]
    state = json.loads((tmp_path / "runs/plain/failures.state").read_text())
    assert state["rps20_p16_g8_r0"]["attempts"] == 2
    # Given up until it is asked for again.
    assert collected(tmp_path, plan_of(bad, bench=bench)).missing == 1
    assert collected(tmp_path, plan_of(bad, bench=bench), retry_failed=True).complete


def test_one_bad_try_is_made_good(tmp_path: Path) -> None:
    env = {"FAKE_BENCH": "once:crash", "FAKE_ONCE": str(tmp_path / "once")}
    cell = [{"rate_rps": 20, "prompt": 16, "output": 8}]
    plan = plan_of(configuration() | {"points": cell}, bench={"env": env, "warmup_requests": 0})
    done = collected(tmp_path, plan)
    assert done.complete and not done.failures
    assert '"failure"' in (tmp_path / "runs/log.jsonl").read_text()


def test_failed_requests_are_kept_and_counted(tmp_path: Path) -> None:
    done = collected(tmp_path, plan_of(bench={"env": {"FAKE_BENCH": "some-fail"}}))
    assert done.complete
    runs = bsd.read_traces(tmp_path / "runs").runs
    assert (runs.failed == (runs.failed + runs.requests) // 4).all() and runs["flags"].str.contains(
        "failed>5%"
    ).all()


def test_a_full_disk_is_recorded_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, full = run.write_text, []

    def write(path: Path, text: str) -> None:
        if "load0.1" in path.name and len(full) < 2:
            full.append(path)
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, text)

    monkeypatch.setattr(run, "write_text", write)
    done = collected(tmp_path, plan_of())
    assert len(full) == 2 and done.missing == 1 and done.runs == 1
    assert "No space left on device" in done.failures["plain/load0.1_p16_g8_r0"]
    assert len(bsd.read_traces(tmp_path / "runs")) == 1
    assert collected(tmp_path, plan_of(), retry_failed=True).complete


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    files.write_text(path, "old")

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_text(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["state"]


def test_a_running_server_can_be_used_and_is_left_alone(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fake = [sys.executable, str(Path(__file__).parent / "fakes/server.py")]
    words = ["--port", str(port), "--served-model-name", "mine"]
    with subprocess.Popen([*fake, *words]) as server:
        wait_for(lambda: listening(port))
        url = f"http://127.0.0.1:{port}"
        plan = plan_of(configuration(served_name="mine"), configuration("other"))
        with pytest.raises(bsd.InputError, match="choose with --only one of"):
            collected(tmp_path, plan, base_url=url)
        assert collected(tmp_path, plan, base_url=url, only="plain").complete
        other = collected(tmp_path, plan, base_url=url, only=["other"])
        assert "serves mine, not 'other'" in other.failures["other/server"]
        assert server.poll() is None
        server.kill()
