"""The processes that work together, the device each runs on, and the precision it computes in."""

import ctypes
import os
import signal
import sys
import uuid
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from .console import console
from .errors import PeerGone, UserError, is_out_of_memory

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Processes:
    """This process among those that work together: its number `rank` of `count`, and its device."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self):
        """Whether this is the process that speaks, writes what is written once, and evaluates."""
        return self.rank == 0

    @property
    def is_first_here(self):
        """Whether this is the process that does what is done once on each machine."""
        return self.count == 1 or os.environ.get("LOCAL_RANK", "0") == "0"

    @property
    def place(self):
        """What they run on, in words."""
        return str(self.device) if self.count == 1 else f"{self.count} processes ({self.device.type})"

    def from_first(self, make):
        """The first process's `make()`, in all of them; the others wait for it. Plain types."""
        if self.count == 1:
            return make()
        box = [make() if self.is_first else None]
        with peers_needed():
            dist.broadcast_object_list(box)
        return box[0]

    def by_machine(self, make):
        """Every process's `make()`; on each machine one process's first, so that the others find what it left there."""
        if self.count == 1:
            return make()
        value = make() if self.is_first_here else None
        self.gather(None)
        return value if self.is_first_here else make()

    def gather(self, value):
        """A list of every process's `value`, in all of them, once all have come here. Plain types."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        with peers_needed():
            dist.all_gather_object(values, value)
        return values

    def sum(self, values):
        """A dict of numbers, the same names in every process, summed over all of them."""
        return self._reduced(values, "SUM")

    def largest(self, values):
        """A dict of numbers, the same names in every process, each the largest of them all."""
        return self._reduced(values, "MAX")

    def _reduced(self, values, how):
        if self.count == 1:
            return values
        numbers = torch.tensor([float(value) for value in values.values()], dtype=torch.float64)
        with peers_needed():
            dist.all_reduce(numbers, getattr(dist.ReduceOp, how))
        return dict(zip(values, numbers.tolist(), strict=True))

    def share(self, total):
        """The part of a global batch of `total` items that is this process's: a slice, one after the other by rank.

        Shares differ by one item at most. Raises `UserError` where there are fewer items than processes.
        """
        if total < self.count:
            raise UserError(
                f"--batch_size {total}: is shared by {self.count} processes, which need at least one image each"
            )
        return slice(self.rank * total // self.count, (self.rank + 1) * total // self.count)


@contextmanager
def peers_needed():
    """Turn what gloo and NCCL raise when another process has gone into `PeerGone`."""
    try:
        yield
    except RuntimeError as error:
        known = isinstance(error, dist.DistError) or any(word in str(error).lower() for word in ("gloo", "nccl"))
        if not known or is_out_of_memory(error):
            raise
        raise PeerGone("another of the processes has ended; see its message") from error


@contextmanager
def joined_processes(gpu_dev, explicit=False, *, exchange_tensors=False):
    """A context with this process's `Processes`: those that torchrun (or `launch`) started, or itself alone.

    Under torchrun process i of a machine takes its GPU i; without GPUs all run on the CPU. gpu_dev, explicit: see
    `pick_device`, for a single process. exchange_tensors: whether they will exchange tensors of their GPUs, by NCCL,
    beside plain values on the CPU, by gloo.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(0, 1, pick_device(gpu_dev, explicit))
        return
    device = torch.device("cpu")
    if torch.cuda.is_available() and gpu_dev != "cpu":
        device = pick_device(os.environ["LOCAL_RANK"])
        torch.cuda.set_device(device)
    # Shares may take days longer than one another, so nobody gives up waiting; a process that dies ends them all.
    by_nccl = exchange_tensors and device.type == "cuda" and dist.is_nccl_available()
    backend, forever = "cpu:gloo,cuda:nccl" if by_nccl else "gloo", timedelta(days=365)
    try:
        store, rank, count = next(dist.rendezvous("env://"))
        if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":  # torchrun's store outlives a restart, with dead addresses
            store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=forever)
    except (RuntimeError, ValueError) as error:  # a port that is taken, a variable of torchrun's that is not set
        raise UserError(f"the processes do not find each other ({str(error).splitlines()[0]})") from error
    try:
        yield Processes(rank, count, device)
    finally:
        dist.destroy_process_group()


def visible_gpus(text):
    """The GPUs that `--multi-gpu` lists, "0,1,2", as CUDA_VISIBLE_DEVICES names them: a list of texts.

    Where that variable is set already, the numbers count what it leaves. Raises `UserError` for what is not there.
    """
    try:
        gpus = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--multi-gpu {text}: must be numbers of GPUs separated by commas, as 0,1,2") from None
    if not torch.cuda.is_available():
        raise UserError(
            f"--multi-gpu {text}: torch finds no GPU here; for several processes on the CPU start the script by "
            "torchrun --nproc_per_node N"
        )
    count = torch.cuda.device_count()
    for gpu in gpus:
        if not 0 <= gpu < count or gpus.count(gpu) > 1:
            raise UserError(f"--multi-gpu {text}: must name each GPU once, of 0 to {count - 1}")
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return [names[gpu] if names != [""] else str(gpu) for gpu in gpus]


def launch_on_gpus(multi_gpu, program, arguments):
    """Run a program (see `launch`) in one process for each GPU of `--multi-gpu`; returns the exit status."""
    if "LOCAL_RANK" in os.environ:
        raise UserError(f"--multi-gpu {multi_gpu}: starts its processes itself; leave it out under torchrun")
    gpus = visible_gpus(multi_gpu)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return launch(program, [*arguments, "--multi_gpu="], len(gpus))  # the last counts, also over a YAML file's


def launch(program, arguments, count):
    """Run a program in `count` processes of this machine through torch's elastic launcher; returns the exit status.

    program: the path of a script, or the name of a module that runs as one.

    The process that failed first has said why; the launcher's own report is left out. A signal is passed on to all,
    which have two minutes to write what they have.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "120")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        max_restarts=0,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
    )
    try:
        what = (program,) if program.endswith(".py") else ("-m", program)
        elastic_launch(config, sys.executable)("-u", *what, *arguments)
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        if max(codes) > 0:
            return max(codes)
        number = signal.Signals(-min(codes - {-signal.SIGTERM}, default=-signal.SIGTERM))  # SIGTERM ends the others
        print(f"error: a process was ended by {number.name}", file=sys.stderr)
        return 128 + number
    except SignalException as error:
        return 128 + error.sigval
    return 0


def pick_device(gpu_dev, explicit=False):
    """The torch device for `--gpu_dev`: that GPU where there is CUDA, else the CPU (told if the flag is `explicit`).

    Raises `UserError` for a GPU that is not there.
    """
    if gpu_dev == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if explicit:
            console().warning(f"warning: --gpu_dev {gpu_dev}: torch finds no GPU here; runs on the CPU")
        return torch.device("cpu")
    if int(gpu_dev) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        there = "is 1 GPU, number 0" if count == 1 else f"are {count} GPUs, numbered from 0"
        raise UserError(f"--gpu_dev {gpu_dev}: there {there}")
    return torch.device("cuda", int(gpu_dev))


def pick_precision(precision, device):
    """The precision for `--precision` on this device: "fp32", "bf16" or "fp16".

    auto is bf16 where the hardware multiplies in it, else fp32. fp16 on a CPU becomes bf16: few CPUs have fast fp16.
    """
    if precision == "fp16" and device.type == "cpu":
        return "bf16"
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if _cpu_has_bf16() else "fp32"


def _cpu_has_bf16():
    # torch tells this through private functions only; a version without them computes in fp32.
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def autocast(precision, device, keep_weights=True):
    """A context in which the network computes in `precision` (from `pick_precision`).

    keep_weights: whether weights in half precision are kept until it is left, rather than made anew for each layer.
    """
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, AUTOCAST_DTYPES[precision], cache_enabled=keep_weights)


def keep_freed_memory():
    """Let the C library keep the memory that tensors free instead of handing it back to the system (Linux, glibc).

    On a CPU a large network spends a quarter of its time on getting the same pages back, one by one and cleared.
    Elsewhere this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return
    trim_threshold, mmap_threshold = -1, -3  # the numbers of M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, -1)


def training_memory_format(device):
    """The same while training: on a CPU the gradient of the norm is so slow with channels last that it eats up what the
    convolutions gain (measured in bf16, at 64 x 64 and at the published size)."""
    return torch.contiguous_format if device.type == "cpu" else torch.channels_last


def memory_format(precision, device):
    """How feature maps lie in memory: channels last where that is faster, in half precision and on GPUs."""
    half = precision != "fp32" or device.type == "cuda"
    return torch.channels_last if half else torch.contiguous_format
