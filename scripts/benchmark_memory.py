"""Does memory stay flat? Sample many phantoms in one process and print its resident size after the tenth and the last
case."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from guided_diffusion.command_line import parse
from guided_diffusion.config import DeviceOptions, DiffusionOptions, ModelOptions, build, option
from guided_diffusion.data import build_dataset
from guided_diffusion.dist_util import keep_freed_memory, pick_device, pick_precision
from guided_diffusion.errors import UserError, run_script
from guided_diffusion.gaussian_diffusion import build_diffusion
from guided_diffusion.logger import console
from guided_diffusion.medsegdiff import build_model
from guided_diffusion.phantom import write_isic
from guided_diffusion.plan import plan_sampling, settle_members
from guided_diffusion.results import ResultsFolder
from guided_diffusion.run_options import SampleOptions
from guided_diffusion.sample_util import EnsembleSampler
from guided_diffusion.units import group_cases

IMAGE_SIZE = 64
EARLY = 10  # cases, after which everything that is kept once is there


@dataclass
class MemoryOptions:
    """The measurement."""

    cases: int = option(100, "how many cases to sample", minimum=EARLY + 1)
    version: str = option("v2", "variant of the network, with random weights", choices=("v1", "v2"))
    num_channels: int = option(16, "width of its first level", above=0)
    num_ensemble: int = option(5, "masks drawn for each image", above=0)
    diffusion_steps: int = option(4, "steps of DPM-Solver++", above=0)


class WatchedFolder(ResultsFolder):
    """A results folder that notes the process's resident size, in bytes, after each case it has written."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.sizes = []

    def write_image(self, *arguments):
        """As it is, then the note."""
        super().write_image(*arguments)
        self.sizes.append(resident_size())


def resident_size():
    """The resident size of this process in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise UserError("/proc/self/status: does not tell the resident size; this needs Linux")


def main(argv=None):
    """Sample the phantoms and print what was noted."""
    (options, device_options), given = parse(__doc__, [MemoryOptions, DeviceOptions], argv)
    device = pick_device(device_options.gpu_dev, "gpu_dev" in given)
    precision = pick_precision(device_options.precision, device)
    keep_freed_memory()
    sizes = {"version": options.version, "image_size": IMAGE_SIZE, "num_channels": options.num_channels}
    torch.manual_seed(0)
    model = build_model(build(ModelOptions, sizes), 3, 1)
    diffusion = build_diffusion(build(DiffusionOptions, {}))
    flags = {"dpm_solver": True, "diffusion_steps": options.diffusion_steps, "num_ensemble": options.num_ensemble}
    sample = build(SampleOptions, flags | {"sample_batch_size": str(options.num_ensemble), "batch_size": 1})
    with tempfile.TemporaryDirectory() as place:
        write_isic(Path(place) / "data", num_train=1, num_test=options.cases, size=IMAGE_SIZE, seed=0)
        dataset = build_dataset("ISIC", Path(place) / "data" / "Test", IMAGE_SIZE, split="test")
        folder = WatchedFolder(Path(place) / "results", {"settings": {}}, save_samples=True)
        plan = settle_members(plan_sampling(sample, set(flags), diffusion), sample, {}, diffusion.exclusive)
        sampler = EnsembleSampler(model, diffusion, plan, sample, device, precision, IMAGE_SIZE)
        sampler.run(dataset, group_cases(dataset.cases), folder, num_workers=2)
    early, last = folder.sizes[EARLY - 1], folder.sizes[-1]
    console().info(f"resident size after {EARLY} cases: {early / 2**20:.1f} MB")
    console().info(f"after {options.cases}: {last / 2**20:.1f} MB, {100 * (last / early - 1):+.2f} %")


if __name__ == "__main__":
    run_script(main)
