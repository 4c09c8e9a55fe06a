"""run.sh against a stand-in for ``vllm bench sweep serve``: resuming, guarding, interrupting."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bayes_sd.plan.sweep import Point, SweepServer, VllmOptions, write_sweep

pytestmark = pytest.mark.process

FAKE_VLLM = """#!{python}
import json, pathlib, sys, time
words = sys.argv[1:]
assert words[:3] == ["bench", "sweep", "serve"], words
if words[3].startswith("--help"):
    print("{options}")
    sys.exit()
option = dict(zip(words[3:], words[4:]))
runs = pathlib.Path(option["--output-dir"]) / option["--experiment-name"]
assert runs.exists() == ("--resume" in words), words
pathlib.Path("calls.log").open("a").write(json.dumps(words) + chr(10))
(server, _), = json.loads(pathlib.Path(option["--serve-params"]).read_text()).items()
for name in json.loads(pathlib.Path(option["--bench-params"]).read_text()):
    folder = runs / f"SERVE--{{server}}-BENCH--{{name}}"
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "run=0.json").exists():
        continue
    if pathlib.Path("fail").exists():
        (folder / "run=0.failure.json").write_text("{{}}")
        sys.exit(0 if "--continue-on-error" in words else 1)
    try:
        time.sleep(60 if pathlib.Path("hang").exists() else 0)
    except KeyboardInterrupt:
        pathlib.Path("stopped").touch()
        raise
    (folder / "run=0.json").write_text(json.dumps({{"run_number": 0, "name": name}}, indent=4))
"""
OPTIONS = "--experiment-name --resume --continue-on-error"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    servers = [
        SweepServer("plain", "org/m"),
        SweepServer("sd", "org/m", "d", "/x y/d", "eagle3", 3),
    ]
    points = [Point(8, 8, 4, concurrency=c) for c in (1, 2)]
    options = VllmOptions(serve_args="--dtype bfloat16", env={"A": "b c"})
    write_sweep(tmp_path / "sweep", servers, [points, points], options=options)
    return tmp_path / "sweep"


def environment(folder: Path, options: str = OPTIONS) -> dict[str, str]:
    """Variables that make run.sh call the stand-in, on a free port."""
    vllm = folder / "fake vllm"
    vllm.write_text(FAKE_VLLM.format(python=sys.executable, options=options))
    vllm.chmod(0o755)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    return os.environ | {"VLLM": str(vllm), "PORT": str(port)}


def run(folder: Path, variables: dict[str, str] | None = None) -> tuple[int, str]:
    command = [folder / "run.sh"]
    done = subprocess.run(
        command, env=variables or environment(folder), capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


def calls(folder: Path) -> list[list[str]]:
    return [json.loads(line) for line in (folder / "calls.log").read_text().splitlines()]


def test_every_run_is_measured_once(folder: Path) -> None:
    code, says = run(folder)
    assert code == 0 and "4 of 4 runs are measured." in says
    (plain, sd) = calls(folder)
    serve = plain[plain.index("--serve-cmd") + 1]
    assert "serve org/m --host 127.0.0.1 --port" in serve and serve.endswith("--dtype bfloat16")
    assert "--temperature 0" in plain[plain.index("--bench-cmd") + 1]
    assert "--continue-on-error" in sd
    assert run(folder)[0] == 0 and len(calls(folder)) == 2


def test_a_run_cut_off_while_written_is_measured_again(folder: Path) -> None:
    run(folder)
    cut, bare = sorted(folder.glob("plain/runs/*/run=0.json"))
    kept = folder / "sd/runs/SERVE--sd-BENCH--c1_p8_g8/run=0.json"
    before = kept.stat().st_mtime_ns
    cut.write_text(cut.read_text()[:-3])
    bare.write_text('{"duration": 1}')
    assert run(folder)[0] == 0
    assert "--resume" in calls(folder)[-1] and len(calls(folder)) == 3
    assert json.loads(cut.read_text())["run_number"] == 0
    assert json.loads(bare.read_text())["run_number"] == 0
    assert kept.stat().st_mtime_ns == before


def test_failures_are_told_and_tried_again(folder: Path) -> None:
    (folder / "fail").touch()
    code, says = run(folder)
    assert code == 1 and "plain: 0 of 2 runs" in says and "0 of 4 runs are measured." in says
    (folder / "fail").unlink()
    assert run(folder)[0] == 0
    assert not list(folder.rglob("*failure.json"))


def test_an_old_vllm_is_refused_or_called_without_what_it_lacks(folder: Path) -> None:
    code, says = run(folder, environment(folder, "--resume DIR"))
    assert code == 1 and "has no 'bench sweep serve --experiment-name'" in says
    assert run(folder, environment(folder, "--experiment-name"))[0] == 0
    assert "--continue-on-error" not in calls(folder)[0]


def test_a_port_in_use_is_not_measured(folder: Path) -> None:
    variables = environment(folder)
    with socket.create_server(("127.0.0.1", int(variables["PORT"]))):
        code, says = run(folder, variables)
    assert code == 1 and f"Port {variables['PORT']} is in use" in says
    assert not (folder / "calls.log").exists()


def test_unknown_paths_have_to_be_filled_in(tmp_path: Path) -> None:
    servers = [SweepServer("plain"), SweepServer("sd", "org/m", "d", draft_tokens=3)]
    write_sweep(tmp_path / "sweep", servers, [[Point(8, 8, 4, rate_rps=1.0)]] * 2)
    code, says = run(tmp_path / "sweep")
    assert code == 1 and says.count("put its models' paths into") == 2
    assert not (tmp_path / "sweep" / "calls.log").exists()


@pytest.mark.parametrize("sigint_ignored", [False, True])
def test_an_interruption_reaches_the_sweep(folder: Path, sigint_ignored: bool) -> None:
    """Also where SIGINT is ignored, as in a script's background jobs."""
    (folder / "hang").touch()
    ignore = "trap '' INT; " if sigint_ignored else ""
    command = ["bash", "-c", f"{ignore}exec ./run.sh"]
    with subprocess.Popen(command, cwd=folder, env=environment(folder), text=True) as process:
        deadline = time.monotonic() + 30
        while not (folder / "calls.log").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 130
    assert (folder / "stopped").exists()
    (folder / "hang").unlink()
    assert run(folder)[0] == 0
