"""The device and the precision the network runs in."""

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from guided_diffusion.config.command_line import parse
from guided_diffusion.config.fields import build
from guided_diffusion.config.options import DiffusionOptions, ModelOptions, ProcessOptions
from guided_diffusion.config.sample_options import SampleOptions
from guided_diffusion.diffusion.gaussian_diffusion import build_diffusion
from guided_diffusion.inference.members import draw_members
from guided_diffusion.inference.plan import plan_sampling
from guided_diffusion.models.medsegdiff import build_model
from guided_diffusion.runtime import distributed as dist_util
from guided_diffusion.runtime.distributed import (
    autocast,
    joined_processes,
    launch,
    launch_on_gpus,
    memory_format,
    pick_device,
    pick_precision,
    visible_gpus,
)
from guided_diffusion.runtime.errors import UserError
from guided_diffusion.runtime.program import CALLED_BY

CPU = torch.device("cpu")


@pytest.fixture
def gpus(monkeypatch):
    """A function (count) after which torch seems to see that many GPUs."""

    def pretend(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


def test_without_a_gpu_the_cpu_is_used(gpus):
    gpus(0)
    assert pick_device("0") == pick_device("cpu") == pick_device("3") == CPU


def test_the_gpu_asked_for(gpus):
    gpus(2)
    assert pick_device("1") == torch.device("cuda", 1)
    assert pick_device("cpu") == CPU
    with pytest.raises(UserError, match="--gpu_dev 2: there are 2 GPUs, numbered from 0"):
        pick_device("2")


def test_a_process_alone_is_the_first_and_waits_for_nobody(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined_processes("cpu") as processes:
        assert processes.is_first and processes.count == 1 and processes.device == CPU
        assert processes.from_first(lambda: 3) == 3 and processes.gather("a") == ["a"]
        assert processes.sum({"a": 2}) == processes.largest({"a": 2}) == {"a": 2}


@pytest.mark.parametrize(
    ("text", "visible", "names"),
    [("0,2", None, ["0", "2"]), ("2", "4,5,6", ["6"]), ("1,0", "7,GPU-ab", ["GPU-ab", "7"])],
)
def test_the_gpus_asked_for_by_their_numbers_among_the_visible(gpus, monkeypatch, text, visible, names):
    gpus(3 if visible is None else len(visible.split(",")))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus(text) == names


@pytest.mark.parametrize("text", ["a", "0,,1", "0,2", "0,0", "-1"])
def test_gpus_that_are_not_there_are_refused(gpus, text):
    gpus(2)
    with pytest.raises(UserError, match=f"--multi-gpu {text}: must"):
        visible_gpus(text)


def test_several_gpus_without_any_are_refused_with_the_way_for_cpus(gpus):
    gpus(0)
    with pytest.raises(UserError, match="torchrun --nproc_per_node"):
        visible_gpus("0,1")


def test_each_gpu_gets_a_process_which_starts_no_others(gpus, monkeypatch):
    """Whether the flag or a YAML file asked for them: in the processes the last flag counts."""
    gpus(3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    started = []
    monkeypatch.setattr(dist_util, "launch", lambda *how: started.append((*how, os.environ["CUDA_VISIBLE_DEVICES"])))
    launch_on_gpus("0,2", "train", ["--multi-gpu", "0,2", "--seed", "1"])
    ((program, (verb, *arguments), count, visible),) = started
    assert (program, verb, count, visible) == ("guided_diffusion", "train", 2, "0,2")
    (options,), _ = parse("", [ProcessOptions], [word for word in arguments if word not in ("--seed", "1")])
    assert options.multi_gpu == ""


def test_processes_within_processes_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UserError, match="--multi-gpu 0,1: starts its processes itself; leave it out under torchrun"):
        launch_on_gpus("0,1", "train", [])


KEEPING = """
import resource
import torch
from guided_diffusion.runtime.distributed import keep_freed_memory

keep_freed_memory()
for _ in range(12):  # 64 MB each, until the heap has settled
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(2**24)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / (5 * 2**26 / resource.getpagesize()))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the memory is glibc's")
def test_freed_memory_is_kept():
    """In processes of their own. The heap begins at a random place, and from some places glibc never keeps such large
    blocks: one of several processes must keep them."""

    def share():
        found = subprocess.run([sys.executable, "-c", KEEPING], capture_output=True, text=True, check=True)
        return float(found.stdout)

    assert any(share() < 0.1 for _ in range(8))  # of the pages; each anew would be all of them


WORKER = """
import os, signal, sys, time
from guided_diffusion.runtime.distributed import joined_processes
from guided_diffusion.runtime.errors import UserError, run_script

def main():
    with joined_processes("cpu") as processes:
        word = processes.from_first(lambda: sys.argv[1] * 2)
        everyone = processes.gather((processes.rank, word))
        if sys.argv[1] == "fail":
            raise UserError("printed once")
        if sys.argv[1] == "bug" and processes.rank == 1:
            raise ValueError("a mistake of ours")
        if sys.argv[1] == "killed" and processes.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        total = processes.sum({"a": processes.rank + 1, "b": 0.5})
        largest = processes.largest({"rank": processes.rank})
        if processes.is_first:
            print(everyone, processes.count, total, largest, flush=True)

run_script(main)
"""


@pytest.fixture
def launched(tmp_path, monkeypatch, capfd):
    """A function (argument) that launches `WORKER` in two processes: exit status, stdout and stderr."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(Path(dist_util.__file__).parents[2]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(argument):
        status = launch(str(script), [argument], 2)
        return status, *capfd.readouterr()

    return run


def test_a_module_is_launched_without_the_modules_of_the_folder(tmp_path, monkeypatch):
    """As with --multi_gpu in a folder of a stranger's files."""
    for name in ("PYTHONPATH", "PYTHONSAFEPATH", CALLED_BY):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    for name in ("runpy", "pkgutil", "platform", "guided_diffusion"):
        (tmp_path / f"{name}.py").write_text("print('ran')")
    monkeypatch.chdir(tmp_path)
    commands = []
    monkeypatch.setattr(
        "torch.distributed.launcher.api.elastic_launch", lambda config, *how: lambda *words: commands.append(words)
    )
    assert launch("guided_diffusion", ["--version"], 2) == 0
    ran = subprocess.run([sys.executable, *commands[0]], capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.startswith("medsegdiff "), ran.stderr
    assert commands[0][1] == "-m" and "ran\n" not in ran.stdout


def test_launched_processes_know_each_other(launched):
    status, out, _ = launched("ab")
    assert status == 0 and out.strip() == "[(0, 'abab'), (1, 'abab')] 2 {'a': 3.0, 'b': 1.0} {'rank': 1.0}"


@pytest.mark.parametrize(
    "what, code, line",
    [
        ("fail", 2, "error: printed once"),
        ("killed", 128 + signal.SIGKILL, "error: a process was ended by SIGKILL"),
    ],
)
def test_a_launched_failure_is_printed_once_and_its_status_passed_on(launched, what, code, line):
    """A failure in all, and of one that is killed, on which the other waits."""
    status, _, err = launched(what)
    assert status == code
    assert [line for line in err.splitlines() if line.startswith("error")] == [line]
    assert "Traceback" not in err


def test_torchruns_report_names_the_process_that_met_a_bug(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script), "bug"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(dist_util.__file__).parents[2])}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    cause = ended.stderr.partition("Root Cause")[2]
    assert "rank      : 1" in cause and "ValueError: a mistake of ours" in cause


@pytest.mark.parametrize("has_bf16", [True, False])
def test_precision_on_a_cpu(monkeypatch, has_bf16):
    monkeypatch.setattr(dist_util, "_cpu_has_bf16", lambda: has_bf16)
    assert pick_precision("auto", CPU) == ("bf16" if has_bf16 else "fp32")
    assert pick_precision("fp16", CPU) == "bf16"
    assert pick_precision("fp32", CPU) == "fp32" and pick_precision("bf16", CPU) == "bf16"


@pytest.mark.parametrize("has_bf16", [True, False])
def test_precision_on_a_gpu(monkeypatch, has_bf16):
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bf16)
    assert pick_precision("auto", gpu) == ("bf16" if has_bf16 else "fp32")
    assert pick_precision("fp16", gpu) == "fp16"


def test_a_torch_without_the_private_functions_computes_in_fp32(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert pick_precision("auto", CPU) == "fp32"


@pytest.mark.parametrize("precision, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_computes_in_the_precision(precision, dtype):
    with autocast(precision, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


# ---- mps; none was at hand, so what can be tested is tested without one ----------------------------------------------


@pytest.fixture
def mps(monkeypatch):
    """A machine of Apple's, as far as torch is asked: mps is there, CUDA is not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


def test_mps_is_taken_where_there_is_no_cuda(mps, monkeypatch, capsys):
    assert pick_device("0").type == pick_device("mps", explicit=True).type == "mps"
    assert pick_device("cpu").type == "cpu" and capsys.readouterr().out == ""
    assert pick_device("1", explicit=True).type == "mps"
    assert capsys.readouterr().out == "warning: --gpu_dev 1: torch finds no CUDA here and uses Apple's GPU, mps\n"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("0").type == "cpu"
    with pytest.raises(UserError, match="--gpu_dev mps: torch finds no GPU of Apple's here; leave it out, or give cpu"):
        pick_device("mps")


def test_mps_is_for_one_process(mps, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--gpu_dev mps: is for one process; leave it out under torchrun"):
        with joined_processes("mps"):
            pass


def test_mps_computes_in_fp32_and_contiguous_memory():
    device = torch.device("mps")
    assert pick_precision("auto", device) == pick_precision("fp32", device) == "fp32"
    for precision in ("bf16", "fp16"):
        with pytest.raises(UserError, match=f"--precision {precision}: mps computes in fp32 here"):
            pick_precision(precision, device)
    assert memory_format("fp32", device) == torch.contiguous_format


class NoFloat64(TorchDispatchMode):
    """Fails for an operation that makes float64."""

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        made = [one for one in tree_leaves(result) if isinstance(one, torch.Tensor)]
        is_host_table = function is torch.ops.aten.lift_fresh.default  # an array of the host becomes a tensor there
        assert is_host_table or all(one.dtype != torch.float64 for one in made), f"{function} makes float64"
        return result


@pytest.mark.parametrize("sampler", ["bernoulli", "ddpm", "ddim", "dpm_solver"])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_steps_of_training_and_sampling_need_no_float64(version, sampler):
    """The schedule, in float64, stays on the host."""
    torch.manual_seed(0)
    small = ModelOptions(version=version, image_size=16, num_channels=8, channel_mult="1,2", num_res_blocks=1)
    model, diffusion = build_model(small, 3, 1), build_diffusion(build(DiffusionOptions, {}))
    image, mask = torch.rand(2, 3, 16, 16), torch.ones(2, 1, 16, 16)
    options = SampleOptions(sampler=sampler, diffusion_steps=2, symmetries="none", scales="none")
    plan = plan_sampling(options, {"sampler", "diffusion_steps"}, diffusion)
    with pytest.raises(AssertionError, match="makes float64"), NoFloat64():
        mask.double()
    with NoFloat64():
        losses = diffusion.training_losses(
            model, mask, model.encode(image), torch.tensor([3, 700]), torch.rand(2, 1, 16, 16)
        )
        losses["loss"].mean().backward()
        with torch.no_grad():
            draw_members(model, diffusion, plan, image, ["a", "b"], members=2)
