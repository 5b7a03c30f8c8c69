"""The processes of a command, the device of each, and the precision and memory layout it computes with."""

import ctypes
import os
import re
import signal
import sys
import uuid
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from .console import console, counted
from .errors import PeerGone, UserError, is_out_of_memory
from .program import prepare_children

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Processes:
    """This process among the `count` processes of a command: its number `rank` and its device."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self):
        """Whether this is the process that prints, writes shared files and evaluates."""
        return self.rank == 0

    @property
    def is_first_here(self):
        """Whether this is the first process on its machine."""
        return self.count == 1 or os.environ.get("LOCAL_RANK", "0") == "0"

    @property
    def on_machine(self):
        """The number of processes on this machine."""
        return 1 if self.count == 1 else int(os.environ.get("LOCAL_WORLD_SIZE", self.count))

    @property
    def place(self):
        """The device, or the number and kind of processes, for messages; on the CPU with the number of threads."""
        place = str(self.device) if self.count == 1 else f"{self.count} processes ({self.device.type})"
        if self.device.type != "cpu":
            return place
        return f"{place}, {counted(torch.get_num_threads(), 'thread')}{' each' if self.count > 1 else ''}"

    def from_first(self, make):
        """The result of `make()` in the first process, for all processes; of plain types."""
        if self.count == 1:
            return make()
        box = [make() if self.is_first else None]
        with peers_needed():
            dist.broadcast_object_list(box)
        return box[0]

    def by_machine(self, make):
        """The result of `make()`, which the first process of each machine runs before the others, to fill a cache."""
        if self.count == 1:
            return make()
        value = make() if self.is_first_here else None
        self.gather(None)
        return value if self.is_first_here else make()

    def gather(self, value):
        """Wait for all processes and return the list of their values by rank; of plain types."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        with peers_needed():
            dist.all_gather_object(values, value)
        return values

    def sum(self, values):
        """A dict of numbers summed over the processes, which all have the same names."""
        return self._reduced(values, "SUM")

    def largest(self, values):
        """A dict of the largest number of any process for each name."""
        return self._reduced(values, "MAX")

    def _reduced(self, values, operation):
        if self.count == 1:
            return values
        numbers = torch.tensor([float(value) for value in values.values()], dtype=torch.float64)
        with peers_needed():
            dist.all_reduce(numbers, getattr(dist.ReduceOp, operation))
        return dict(zip(values, numbers.tolist(), strict=True))

    def share(self, total):
        """This process's slice of a global batch of `total` items; slices differ by at most one item.

        Raises `UserError` if there are fewer items than processes.
        """
        if total < self.count:
            raise UserError(
                f"--batch_size {total}: is shared by {self.count} processes, one image each at least; give "
                f"{self.count} or more"
            )
        return slice(self.rank * total // self.count, (self.rank + 1) * total // self.count)


@contextmanager
def peers_needed():
    """Within, errors of gloo and NCCL become `PeerGone`: another process has ended."""
    try:
        yield
    except RuntimeError as error:
        known = isinstance(error, dist.DistError) or any(word in str(error).lower() for word in ("gloo", "nccl"))
        if not known or is_out_of_memory(error):
            raise
        raise PeerGone("another of the processes has ended; see its message") from error


@contextmanager
def joined_processes(gpu_dev, explicit=False, *, exchange_tensors=False):
    """A context with this process's `Processes`: those that torchrun (or `launch`) started, or this one alone.

    Under torchrun, process i of a machine gets GPU i; without GPUs all run on the CPU. gpu_dev, explicit: see
    `pick_device`, for a single process. exchange_tensors: whether processes exchange tensors of GPUs, which needs NCCL
    beside gloo. Raises `UserError` if the processes cannot connect.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(0, 1, pick_device(gpu_dev, explicit))
        return
    if gpu_dev == "mps":
        raise UserError("--gpu_dev mps: is for one process; leave it out under torchrun")
    device = torch.device("cpu")
    if torch.cuda.is_available() and gpu_dev != "cpu":
        device = pick_device(os.environ["LOCAL_RANK"])
        torch.cuda.set_device(device)
    # One process may take days longer than another, so none gives up waiting; a process that dies ends them all.
    by_nccl = exchange_tensors and device.type == "cuda" and dist.is_nccl_available()
    backend, forever = "cpu:gloo,cuda:nccl" if by_nccl else "gloo", timedelta(days=365)
    try:
        store, rank, count = next(dist.rendezvous("env://"))
        if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":  # torchrun's store keeps dead addresses over a restart
            store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=forever)
    except (RuntimeError, ValueError) as error:  # a port in use, a variable of torchrun that is not set
        reason = str(error).splitlines()[0]
        raise UserError(f"the processes cannot connect ({reason}); start them by torchrun or --multi-gpu") from error
    try:
        yield Processes(rank, count, device)
    finally:
        dist.destroy_process_group()


def visible_gpus(text):
    """The names, as in CUDA_VISIBLE_DEVICES, of the GPUs that `--multi-gpu` lists, such as "0,1,2".

    If that variable is set, the numbers count the GPUs it names. Raises `UserError` for a GPU that does not exist.
    """
    if not re.fullmatch(r" *[0-9]{1,4}( *, *[0-9]{1,4})* *", text):
        raise UserError(f"--multi-gpu {text[:60]}: must be numbers of GPUs separated by commas, such as 0,1,2")
    gpus = [int(part) for part in text.split(",")]
    if not torch.cuda.is_available():
        raise UserError(
            f"--multi-gpu {text}: torch finds no GPU here; for several processes on the CPU write "
            "torchrun --nproc_per_node N -m guided_diffusion VERB"
        )
    count = torch.cuda.device_count()
    for gpu in gpus:
        if not 0 <= gpu < count or gpus.count(gpu) > 1:
            raise UserError(f"--multi-gpu {text}: must name GPUs from 0 to {count - 1}, each once")
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return [names[gpu] if names != [""] else str(gpu) for gpu in gpus]


def launch_on_gpus(multi_gpu, verb, arguments):
    """Run a verb of this program in one process for each GPU of `--multi-gpu`; returns the exit status."""
    if "LOCAL_RANK" in os.environ:
        raise UserError(f"--multi-gpu {multi_gpu}: starts its processes itself; leave it out under torchrun")
    gpus = visible_gpus(multi_gpu)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    # The last flag wins, also over a YAML file.
    return launch("guided_diffusion", [verb, *arguments, "--multi_gpu="], len(gpus))


def launch(program, arguments, count):
    """Run a program in `count` processes of this machine through torch's elastic launcher; returns the exit status.

    program: the path of a script, or the name of a module to run. The process that fails first prints its error; the
    launcher adds no report. A signal is passed on to all processes, which have two minutes to save.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "120")
    if not program.endswith(".py"):
        prepare_children()
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
        target = (program,) if program.endswith(".py") else ("-m", program)
        elastic_launch(config, sys.executable)("-u", *target, *arguments)
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
    """The torch device for `--gpu_dev`: that GPU. Without CUDA it is Apple's GPU (mps), or the CPU without one.

    explicit: whether the user set the flag; a warning then says that it is another device. Raises `UserError` for a
    GPU that does not exist.
    """
    if gpu_dev == "cpu":
        return torch.device("cpu")
    has_mps = torch.backends.mps.is_available()
    if gpu_dev == "mps":
        if not has_mps:
            raise UserError("--gpu_dev mps: torch finds no GPU of Apple's here; leave it out, or give cpu")
        return torch.device("mps")
    if not torch.cuda.is_available():
        if explicit:
            other = "no CUDA here and uses Apple's GPU, mps" if has_mps else "no GPU here and uses the CPU"
            console().warning(f"warning: --gpu_dev {gpu_dev}: torch finds {other}")
        return torch.device("mps" if has_mps else "cpu")
    if int(gpu_dev) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        there = "is 1 GPU, number 0" if count == 1 else f"are {count} GPUs, numbered from 0"
        raise UserError(f"--gpu_dev {gpu_dev}: there {there}")
    return torch.device("cuda", int(gpu_dev))


def pick_precision(precision, device):
    """The precision for `--precision` on this device: "fp32", "bf16" or "fp16".

    auto is bf16 if the hardware multiplies in it, else fp32. fp16 on a CPU becomes bf16, as few CPUs have fast fp16.
    mps has fp32 alone: nothing else was tried there. Raises `UserError` for another precision on it.
    """
    if device.type == "mps":
        if precision not in ("auto", "fp32"):
            raise UserError(f"--precision {precision}: mps computes in fp32 here; leave it out, or add --gpu_dev cpu")
        return "fp32"
    if precision == "fp16" and device.type == "cpu":
        return "bf16"
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if _cpu_has_bf16() else "fp32"


def _cpu_has_bf16():
    # torch has only private functions for this; a version without them computes in fp32.
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def autocast(precision, device, keep_weights=True):
    """A context in which the network computes in `precision` (from `pick_precision`).

    keep_weights: whether to keep each weight's half-precision copy until the end rather than make it anew each time.
    """
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, AUTOCAST_DTYPES[precision], cache_enabled=keep_weights)


def runs_ahead(device):
    """Whether the host may go on while the device computes and copies from and to pinned memory. True of CUDA.

    mps copies from any memory, and its late copies to the host say nowhere when they are done.
    """
    return device.type == "cuda"


def sent(tensor, device):
    """A tensor of the CPU on this device. Neither waits for the other where the host `runs_ahead`."""
    if not runs_ahead(device):
        return tensor.to(device)
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)


class HostCopies:
    """Copies of tensors on the CPU. Where the host `runs_ahead`, they are under way until they are read.

    tensors: of one device; None stays None.
    """

    def __init__(self, tensors):
        device = next(tensor.device for tensor in tensors if tensor is not None)
        late = runs_ahead(device)
        self._copies = [None if tensor is None else tensor.to("cpu", non_blocking=late) for tensor in tensors]
        self._arrival = torch.cuda.current_stream(device).record_event() if late else None

    def read(self):
        """The list of copies. Waits until the device has done all the work from which they come."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._copies


def keep_freed_memory():
    """Make glibc keep the memory that tensors free instead of returning it to the system; no effect elsewhere.

    On a CPU a large network spends a quarter of its time on getting the same pages again, one by one and cleared.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return
    trim_threshold, mmap_threshold = -1, -3  # the numbers of M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, -1)


def memory_format(precision, device):
    """The memory layout of feature maps: channels last if it is faster, in half precision and on GPUs.

    In float32 a CPU takes twice as long for the gradient of a convolution with channels last.
    """
    half = precision != "fp32" or device.type == "cuda"
    return torch.channels_last if half else torch.contiguous_format
