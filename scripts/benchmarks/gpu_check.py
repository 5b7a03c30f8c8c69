"""The parts of gpu_check.sh. Each measures one thing on the GPU and prints its rows of the table as it goes.

`--tiny` measures networks of a few channels, on a CPU too: it shows that the script works, and nothing else.
"""

import argparse
import contextlib
import os
import shlex
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from measuring import cpu_name, once, peak_memory, ratio, time_by_turns
from speed import Speed, prepared
from workloads import FAST

from guided_diffusion.cli.demo import MODEL
from guided_diffusion.cli.verbs import train_main
from guided_diffusion.data.phantoms import write_isic
from guided_diffusion.inference.segmenter import Segmenter
from guided_diffusion.runtime.errors import run_script
from guided_diffusion.runtime.live_memory import gigabytes

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = {"v1": "--version v1", "v2": "--version v2 --recipe auto"}
SIZES = {  # of the networks, and what goes with them: on a GPU and with --tiny
    False: "--preset B --image_size 256 --precision bf16 --repeats 2 --batch_sizes 2,4,8,16,32",
    True: "--image_size 32 --num_channels 8 --channel_mult 1,2 --num_res_blocks 1 --diffusion_steps 20 "
    "--sampling_steps 2 --repeats 1 --batch_sizes 1,2",
}
SMALL = {  # beside the demo's flags, of networks that are trained for seconds
    False: "--data_name ISIC --num_workers 0 --sample_interval 0",
    True: "--data_name ISIC --num_workers 0 --sample_interval 0 --image_size 32 --num_channels 8 --channel_mult 1,2",
}
STEPS = 150  # of the small network whose precisions are compared; the demo's, which takes seconds
TOGETHER = """
import sys
import torch.distributed
from guided_diffusion.cli.verbs import train_main
from guided_diffusion.runtime.errors import run_script
backend, *words = sys.argv[1:]
if backend == "gloo":
    torch.distributed.is_nccl_available = lambda: False
run_script(lambda: train_main(words))
"""


def row(what, *figures):
    """Print a row of the table."""
    print(f"  {what:<66}", *figures, flush=True)


class ShownSpeed(Speed):
    """A `Speed` that prints every row as soon as it is measured."""

    def add(self, what, calls, flops):
        first = len(self.result["rows"])
        super().add(what, calls, flops)
        for one in self.result["rows"][first:]:
            share = f"{one['share_of_matmul_peak']:.0%} of the {self.result['precision'][one['path']]} peak"
            more = f", {one['ratio']:.2f} x the fast path" if "ratio" in one else ""
            row(f"{self.result['settings']['version']} {what}, {one['path']}", f"{one['seconds']:.4g} s, {share}{more}")


def speed_of(version, tiny, kind=ShownSpeed, more=""):
    """A `Speed` of the network that the parts measure."""
    return prepared(kind, f"{VERSIONS[version]} {SIZES[tiny]} {more}".split())


# ---- the parts -------------------------------------------------------------------------------------------------------


def card(tiny):
    """The head of the table: the card, its driver and torch."""
    name, driver = cpu_name(), "no GPU"
    if torch.cuda.is_available():
        name, driver = torch.cuda.get_device_name(), "driver unknown"
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):  # a container may lack the program
            driver = f"driver {subprocess.check_output(query, text=True).split()[0]}"
    size = "tiny networks, which measure nothing" if tiny else "preset B at 256 pixels"
    print(f"{name}, {driver}, torch {torch.__version__}, CUDA {torch.version.cuda}; {size}", flush=True)


def training(tiny):
    """Training steps over batch sizes, the first of them also by the plain path."""
    for version in VERSIONS:
        speed = speed_of(version, tiny)
        peaks = ", ".join(f"{name} {peak / 1e12:.3g}" for name, peak in sorted(speed.result["matmul_peak"].items()))
        row(f"{version} peak of matrix products, TFLOP/s", peaks)
        speed.training()


def memory(tiny):
    """The most memory of a training step by itself: weights, averages, the optimizer's state and all activations.

    On a CPU the measured part lacks what lies there before the step.
    """
    for version in VERSIONS:
        speed = speed_of(version, tiny, Speed)
        device, size = speed.device, 2 if tiny else 8
        others = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0  # the benchmark's own copies
        step = speed.bench.training_step(FAST, size)
        step()  # makes the optimizer's moments
        peak, estimate = peak_memory(step, device) - others, speed.bench.step_memory(FAST, size).need(size)
        figures = f"tensors {gigabytes(peak)}; estimate of the process {gigabytes(estimate)}"
        row(f"{version} training step, {size} images, peak memory", figures)


def sampling(tiny):
    """Denoising steps, our default answers, and the published command: all steps of DDPM, once."""
    for version in VERSIONS:
        speed = speed_of(version, tiny)
        speed.denoising()
        speed.answer()
    published = prepared(ShownSpeed, f"--version v1 --recipe published {SIZES[tiny]}".split())
    plan = published.bench.plan(sampler="ddpm")
    seconds = once(lambda: published.bench.draw(FAST, plan).cpu())
    row(f"v1 published command: {published.options.num_ensemble} members, {plan}", f"{seconds:.4g} s, timed once")


def agreement(tiny):
    """Masks and probabilities of a small network, trained for seconds on phantoms, in each precision."""
    has_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder) / "data", Path(folder) / "run"
        write_isic(data, num_train=4 if tiny else 80, num_test=2 if tiny else 10)
        flags = f"{MODEL} {SMALL[tiny]} --max_steps {4 if tiny else STEPS}"
        with contextlib.redirect_stdout(sys.stderr):
            train_main([*shlex.split(flags), "--data_dir", str(data / "Train"), "--out_dir", str(run)])
        images = sorted(map(str, (data / "Test").rglob("*.jpg")))
        for members in (0, 5):
            answers = {}
            for precision in ("fp32", "bf16", "fp16") if has_gpu else ("fp32", "bf16"):
                answers[precision] = Segmenter.load(run, members=members, precision=precision)(images)
            exact = answers.pop("fp32")
            for precision, found in answers.items():
                what = f"{members} members" if members else "default answer"
                row(f"{precision} against fp32, {what}", differences(exact, found))


def differences(exact, found):
    """How two lists of `CaseMaps` differ, as text."""
    gaps = np.concatenate([abs(a.probability - b.probability).ravel() for a, b in zip(exact, found, strict=True)])
    shares = []
    for a, b in zip(exact, found, strict=True):
        marked = a.mask.sum() + b.mask.sum()
        shares.append(2 * (a.mask & b.mask).sum() / marked if marked else 1.0)
    return f"probability differs by {gaps.max():.2g} at most, {gaps.mean():.2g} on average; Dice {np.mean(shares):.4f}"


def compiling(tiny):
    """torch.compile beside eager execution, by turns."""
    smallest = "--version unet --channel_mult 1" if tiny else ""  # a CPU compiles each kernel for a second
    speeds = {
        name: speed_of("v2", tiny, Speed, f"--compile {name == 'compiled'} {smallest}")
        for name in ("eager", "compiled")
    }
    eager = speeds["eager"]
    size, plan = 2 if tiny else 8, eager.bench.plan(diffusion_steps=2 if tiny else 10)
    works = {
        f"training step, {size} images": {
            name: speed.bench.training_step(FAST, size) for name, speed in speeds.items()
        },
        f"ensemble of {eager.options.num_ensemble}: {plan}": {
            name: lambda bench=speed.bench: bench.draw(FAST, plan) for name, speed in speeds.items()
        },
    }
    for what, calls in works.items():
        timings = time_by_turns(calls, eager.options.repeats, eager.device)
        gain, least, most = ratio(timings["eager"], timings["compiled"])
        seconds = ", ".join(f"{name} {timing.seconds:.4g} s" for name, timing in timings.items())
        row(f"{eager.bench.network.version} {what}", f"{seconds}: {gain:.2f} x ({least:.2f} to {most:.2f})")


def processes(tiny):
    """Two processes that train on one card: by NCCL, which may refuse, and by gloo."""
    with tempfile.TemporaryDirectory() as folder:
        write_isic(Path(folder) / "data", num_train=4, num_test=2)
        for backend in ("nccl", "gloo") if torch.cuda.is_available() else ("gloo",):
            flags = f"{MODEL} {SMALL[tiny]} --max_steps 4 --batch_size 4"
            words = [*shlex.split(flags), "--data_dir", f"{folder}/data/Train", "--out_dir", f"{folder}/{backend}"]
            statuses, last = run_together([sys.executable, "-c", TOGETHER, backend, *words], Path(folder))
            row(f"two processes on one device, {backend}", "trained" if statuses == [0, 0] else f"no: {last}")
            if backend == "gloo" and statuses != [0, 0]:
                raise SystemExit(1)


def run_together(command, folder, seconds=35):
    """Run a command as two processes of one job on one device; returns the exit statuses and a line that says why it
    failed, if it did. A process that does not end in time is killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared["NCCL_DEBUG"] = "WARN"  # it then names the reason
    logs = [folder / f"{rank}.log" for rank in range(2)]
    children = []
    for rank, log in enumerate(logs):
        with log.open("w", encoding="utf-8") as out:
            environment = {**shared, "RANK": str(rank)}
            children.append(subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=ROOT))
    statuses = []
    for child in children:
        try:
            statuses.append(child.wait(seconds))
        except subprocess.TimeoutExpired:
            for one in children:
                one.kill()
            statuses.append(child.wait())
    lines = [
        line for log in logs for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
    ]
    reasons = [line for line in lines if "Duplicate GPU" in line] or lines[-1:]
    return statuses, next(iter(reasons), "")


def tests(tiny):
    """The tests of the suite that need a GPU."""
    marked = [
        str(path) for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text(encoding="utf-8")
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *marked]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    sys.stderr.write(done.stdout + done.stderr)
    row("tests marked gpu", (done.stdout.strip().splitlines() or ["no output"])[-1].strip("= "))
    if done.returncode:
        raise SystemExit(1)


PARTS = {part.__name__: part for part in (card, training, memory, sampling, agreement, compiling, processes, tests)}


def main():
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    PARTS[options.part](options.tiny)


if __name__ == "__main__":
    run_script(main)
