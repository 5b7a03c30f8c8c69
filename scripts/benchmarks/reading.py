"""Measure how long items take to read: decoded anew, from the cache, and in the epoch that fills it."""

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from measuring import cpu_name

from guided_diffusion.config.command_line import parse
from guided_diffusion.config.fields import option
from guided_diffusion.config.options import DataOptions
from guided_diffusion.data.cases import spread_indices
from guided_diffusion.data.picture_cache import use_picture_cache
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.data.resizing import View
from guided_diffusion.data.splits import loading_of
from guided_diffusion.data.volume_cache import use_cache
from guided_diffusion.runtime.console import console, text_table
from guided_diffusion.runtime.errors import run_script

EXAMPLE = "python scripts/benchmarks/reading.py --data_dir ISIC/Train --image_size 256"


@dataclass(frozen=True)
class ReadingOptions:
    """The measurement."""

    image_size: int = option(256, "pixels along each side of the items", above=0)
    crop: bool = option(False, "images keep their size, as --crop True keeps them in training")
    items: int = option(32, "items to read, spread over the data", above=0)
    repeats: int = option(5, "rounds in which each way reads all the items, by turns", above=0)


def main(argv=None):
    """Read the items by turns with and without a cache in a temporary folder of its own, and print the times."""
    (options, data), _ = parse(__doc__, [ReadingOptions, DataOptions], argv, example=EXAMPLE)
    torch.set_num_threads(1)  # as in a process that reads images
    with tempfile.TemporaryDirectory(dir=None if data.cache_dir in ("auto", "none") else data.cache_dir) as folder:
        console().info(table_of(measure(options, data, Path(folder) / "cache")))


def measure(options, data, folder):
    """{"decoded", "filling" or "cached": the seconds an item took in each round}. folder: of the cache."""
    view = View(options.crop)
    seconds = {"decoded": [], "filling": [], "cached": []}

    def loaded(cached):
        shown = {"split": "train", "need_masks": True, "view": view}
        dataset = build_dataset(data.data_name, data.data_dir, options.image_size, **shown, **loading_of(data))
        dataset.cases = [dataset.cases[index] for index in spread_indices(len(dataset), options.items)]
        if cached:
            use_cache(dataset, folder, show=False)
            use_picture_cache(dataset, folder, show=False)
        return dataset

    def read(dataset):
        began = time.perf_counter()
        for index in range(len(dataset)):
            dataset[index]
        return (time.perf_counter() - began) / len(dataset)

    plain = loaded(False)
    plain[0]  # compares the masks, once a process
    for _ in range(options.repeats):
        seconds["decoded"].append(read(plain))
        shutil.rmtree(folder, ignore_errors=True)
        began = time.perf_counter()
        dataset = loaded(True)
        volumes = (time.perf_counter() - began) / len(dataset) if dataset.pictures is None else 0
        seconds["filling"].append(volumes + read(dataset))
        seconds["cached"].append(read(dataset))
    return seconds


def table_of(seconds):
    """The times as text."""
    rows = []
    for name, each in seconds.items():
        shares = [one / other for one, other in zip(seconds["decoded"], each, strict=True)]
        ms = [f"{1000 * value:.3g}" for value in (median(each), min(each), max(each))]
        rows.append([name, ms[0], f"{ms[1]}..{ms[2]}", f"{median(shares):.3g} x"])
    return f"machine: {cpu_name()}, one thread\n{text_table(['', 'ms an item', 'min..max', 'decoded /'], rows)}"


if __name__ == "__main__":
    run_script(main)
