"""The GPU script: a part that fails is one line and the rest goes on; its rows; two processes on one device."""

import importlib
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import SCRIPTS

from guided_diffusion.inference.answer import CaseMaps

SCRIPT = SCRIPTS / "benchmarks" / "gpu_check.sh"
PARTS = re.findall(r"(\w+):(\d+)", re.search(r"^parts=.*", SCRIPT.read_text(), re.M)[0])


@pytest.fixture
def check(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS / "benchmarks"))
    measuring = importlib.import_module("measuring")
    monkeypatch.setattr(measuring, "ROUND_SECONDS", 0.001)
    monkeypatch.setitem(measuring.MATMUL_SIZES, "cpu", (64,))
    return importlib.import_module("gpu_check")


@pytest.fixture
def run_script(tmp_path, monkeypatch):
    """A function that runs the script with a python without a GPU, killed in `memory`, which fails in `sampling`."""
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\n[ $1 = -c ] && exit 1\necho "  ran $2 $3"\n'
        "[ $2 != sampling ] || { echo 'a traceback'; echo 'CudaError: no'; exit 3; } >&2\n"
        "[ $2 != memory ] || kill -9 $$\n"
    )
    python.chmod(0o755)
    monkeypatch.setenv("PYTHON", str(python))

    def run(*words):
        return subprocess.run(["bash", SCRIPT, *words], capture_output=True, text=True)

    return run


def test_without_a_gpu_it_is_one_line(run_script):
    done = run_script()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: torch finds no GPU here; --tiny tries the script on a CPU\n"
    done = run_script("--tiny", "train")
    assert done.returncode == 2 and done.stderr.startswith("error: train: is none of card training memory sampling ")


def test_a_part_that_fails_is_one_line_and_the_others_go_on(run_script):
    done = run_script("--tiny")
    assert done.returncode == 1 and done.stderr == ""
    assert re.findall(r"  ran (\w+) --tiny", done.stdout) == [name for name, _ in PARTS]
    assert "  memory failed: killed: by the system, or since it went on after its limit of 30 s\n" in done.stdout
    assert "  sampling failed: status 3: CudaError: no\n" in done.stdout and "a traceback" not in done.stdout
    done = run_script("--tiny", "tests", "card")
    assert (done.returncode, done.stdout) == (0, "  ran card --tiny\ntests\n  ran tests --tiny\n")


def test_every_part_has_a_limit_and_all_take_less_than_eight_minutes(check):
    assert [name for name, _ in PARTS] == list(check.PARTS)
    assert sum(int(seconds) for _, seconds in PARTS) < 8 * 60


def test_memory_and_measured_calls_are_rows(check, capsys):
    check.memory(True)
    speed = check.speed_of("v1", True)
    speed.add("step", {check.FAST: lambda: None}, {check.FAST: 1.0})
    rows = capsys.readouterr().out.splitlines()
    figures = r"tensors [\d.e-]+ GB; estimate of the process [\d.]+ GB"
    assert re.fullmatch(rf"  v1 training step, 2 images, peak memory +{figures}", rows[0])
    assert rows[1].startswith("  v2 ") and re.fullmatch(r"  v1 step, fast +[\d.e-]+ s, \d+% of the fp32 peak", rows[2])


def test_the_published_command_runs_once(check, monkeypatch, capsys):
    drawn, workloads = [], importlib.import_module("workloads")
    monkeypatch.setattr(check.ShownSpeed, "denoising", lambda speed: None)
    monkeypatch.setattr(check.ShownSpeed, "answer", lambda speed: None)
    draw = workloads.NetworkBench.draw
    monkeypatch.setattr(workloads.NetworkBench, "draw", lambda *rest: drawn.append(rest) or draw(*rest))
    check.sampling(True)
    (row,) = capsys.readouterr().out.splitlines()
    assert len(drawn) == 1
    assert re.fullmatch(r"  v1 published command: 5 members, ddpm, 20 steps +[\d.]+ s, timed once", row)


def test_differences_of_two_precisions(check):
    def maps(*probability):
        p = np.array([probability], np.float32)
        return CaseMaps(p > 0.5, p, p, p[:0], None)

    exact, found = [maps(0.9, 0.8, 0.1), maps(0.2, 0.1, 0.0)], [maps(0.9, 0.4, 0.1), maps(0.2, 0.1, 0.0)]
    assert check.differences(exact, found) == (
        "probability differs by 0.4 at most, 0.067 on average; Dice 0.8333"  # 2/3, and 1 where both masks are empty
    )


def test_two_processes_share_one_device(check, tmp_path):
    code = "import os, sys; rank = int(os.environ['RANK']); print('reason', rank); sys.exit(rank * int(sys.argv[1]))"
    assert check.run_together([sys.executable, "-c", code, "0"], tmp_path)[0] == [0, 0]
    assert check.run_together([sys.executable, "-c", code, "3"], tmp_path) == ([0, 3], "reason 1")
    assert check.run_together([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, 0.2)[0] == [-9, -9]
