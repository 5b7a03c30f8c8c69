"""Real processes for tests, forked where torch is loaded already: training as torchrun would start it, in a second."""

import importlib
import importlib.util
import inspect
import multiprocessing
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

MODULES = ["torch._dynamo", "torch.utils.tensorboard", "pytest", "conftest"]  # the slow ones: optimizers need _dynamo
MODULES += ["guided_diffusion.training.loop", "guided_diffusion.data.loaders.folder", "guided_diffusion.cli.train"]
MODULES += ["guided_diffusion.cli.sample"]
MODULES += ["scipy.optimize", "skimage.morphology", "yaml"]
MODULES += ["torch.distributed.checkpoint.state_dict", "torch.distributed.fsdp", "torch.distributed.tensor"]


def start(target, *arguments, log, environment=None):
    """Start `target(*arguments)` in a process of its own, whose output goes to the file `log`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    place = (inspect.getsourcefile(target), target.__name__)  # pytest's names of test files cannot be imported
    child = context.Process(target=_begin, args=(place, arguments, str(log), environment or {}), daemon=True)
    child.start()
    return child


def start_ranks(count, target, *arguments, folder):
    """Start `count` processes as torchrun does; process i writes to FOLDER/i.log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        start(
            target,
            *arguments,
            log=folder / f"{rank}.log",
            environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]


def finish(children, folder, timeout=60):
    """Wait for the processes of `start_ranks`: their exit statuses and outputs, by rank."""
    for child in children:
        child.join(timeout)
        if child.exitcode is None:
            child.kill()
            child.join()
    return SimpleNamespace(
        statuses=[child.exitcode for child in children],
        outputs=[(folder / f"{rank}.log").read_text() for rank in range(len(children))],
    )


def train(words):
    """The training script with this command line, from its door to its exit."""
    _run_script("segmentation_train", words)


def sample(words):
    """The same of the sampling script."""
    _run_script("segmentation_sample", words)


def _run_script(name, words):
    from conftest import SCRIPTS

    from guided_diffusion.runtime.errors import run_script

    sys.path.insert(0, str(SCRIPTS))
    run_script(lambda: importlib.import_module(name).main(words))


def _begin(place, arguments, log, environment):
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    import torch

    from guided_diffusion.runtime import errors

    torch.set_num_threads(1)
    errors.RANK_WAIT = 1  # the launcher, which would have ended this process by then, is not there
    path, name = place
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    getattr(module, name)(*arguments)
