"""Threads: a container's quota, the processes of this machine, OMP_NUM_THREADS, and --threads over them all."""

import os

import pytest
import torch
from conftest import FAST

from guided_diffusion.config.command_line import parse
from guided_diffusion.config.options import DeviceOptions, ProcessOptions
from guided_diffusion.data.batches import sampling_batches
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.runtime import threads
from guided_diffusion.runtime.distributed import Processes
from guided_diffusion.runtime.threads import cpu_quota, usable_cores, use_threads


@pytest.fixture(autouse=True)
def torch_as_before(monkeypatch):
    """Torch has three threads before each test, as on a machine of three cores; then as many as it had."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(threads, "cpu_quota", lambda: None)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def quota(tmp_path):
    """A function (lines of /proc/self/cgroup, {file below /sys/fs/cgroup: text}) -> the quota read from them."""

    def read(own, files):
        for name, text in files.items():
            path = tmp_path / "mounted" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / "own").write_text(own)
        return cpu_quota(tmp_path / "mounted", tmp_path / "own")

    return read


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2.5),  # version 2, in a container
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "400000 100000\n"}, 4),  # of the group around it
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000\n", "a/cpu.max": "400000 100000\n"}, 3),
        ("0::/../x\n", {"cpu.max": "200000 100000\n", "x/cpu.max": "100000 100000\n"}, 2),
        (
            "4:cpu,cpuacct:/j\n0::/\n",
            {"cpu,cpuacct/j/cpu.cfs_quota_us": "150000\n"} | {"cpu,cpuacct/j/cpu.cfs_period_us": "100000\n"},
            1.5,
        ),  # version 1
        ("4:cpu:/docker/f00\n", {"cpu/cpu.cfs_quota_us": "600000", "cpu/cpu.cfs_period_us": "100000"}, 6),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("3:cpuset:/\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("", {}, None),
        ("garbage\n\0\n7\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/a\n", {"a/cpu.max": "many 100000\n", "cpu.max": "0 0\n"}, None),
    ],
)
def test_the_quota_of_a_control_group(quota, own, files, cores):
    assert quota(own, files) == cores


def test_no_quota_where_there_are_no_control_groups(tmp_path):
    assert cpu_quota(tmp_path, tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("allowed", "processes", "cores"), [(None, "1", 8), (2.5, "1", 2), (0.5, "1", 1), (None, "4", 2), (6.0, "4", 1)]
)
def test_the_processes_of_a_machine_share_its_cores(pictures, monkeypatch, allowed, processes, cores):
    monkeypatch.setattr(threads, "cpu_quota", lambda: allowed)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert usable_cores() == cores
    assert sampling_batches(build_dataset("FOLDER", pictures, 32), [[0]], num_workers=512).num_workers == cores


@pytest.mark.parametrize(
    ("asked", "variable", "allowed", "used"),
    [(0, None, None, 3), (0, None, 2.5, 2), (0, "3", 2.5, 3), (2, "3", 1, 2), (5, None, 2.5, 5)],
)
def test_which_number_of_threads(monkeypatch, capsys, asked, variable, allowed, used):
    monkeypatch.setattr(threads, "cpu_quota", lambda: allowed)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    use_threads(asked)
    assert torch.get_num_threads() == used
    assert ("warning: --threads" in capsys.readouterr().out) == (asked > (allowed or 8))


def test_the_place_of_a_command_names_them():
    cpu = torch.device("cpu")
    assert Processes(0, 1, cpu).place == "cpu, 3 threads" and Processes(0, 1, torch.device("cuda:1")).place == "cuda:1"
    torch.set_num_threads(1)
    assert Processes(0, 2, cpu).place == "2 processes (cpu), 1 thread each"


@pytest.mark.parametrize("verb", ["segmentation_train", "segmentation_sample", "segmentation_eval"])
@pytest.mark.parametrize("value", ["-1", "two", "5000"])
def test_a_wrong_value_is_one_line(refusal, verb, value):
    assert f"--threads {value}" in refusal(verb, f"--threads {value}")


def test_each_command_sets_them_and_no_file_of_a_run_names_them(train, sample, script, pictures, capsys):
    path = train("FOLDER", pictures, "--threads 1")
    assert ", on cpu, 1 thread in fp32" in capsys.readouterr().out
    assert "threads" not in (path.parent / "config.yaml").read_text()
    torch.set_num_threads(3)
    results = sample(path, pictures, f"{FAST} --num_samples 1 --threads 1")
    assert ", on cpu, 1 thread in fp32" in capsys.readouterr().out
    torch.set_num_threads(3)
    script("segmentation_eval", ["--num_workers 0 --threads 1 --pred_dir", results])
    assert torch.get_num_threads() == 1


def test_threads_are_an_option_of_commands_alone():
    """Not of `Segmenter`, whose caller's setting is not its own to change."""
    (options,), _ = parse("", [ProcessOptions], ["--threads", "4"])
    assert options.threads == 4 and not hasattr(DeviceOptions(), "threads")
