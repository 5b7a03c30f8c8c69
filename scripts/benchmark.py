"""Measure how fast a network trains and samples and data loads here, as ratios to plain ways in the same run."""

import dataclasses
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from guided_diffusion.benchmark import (
    CACHED,
    DEFAULT_STEPS,
    FAST,
    PLAIN,
    PLAIN_STEPS,
    TRAINING_FACTOR,
    compare,
    count,
    describe_machine,
    measured_peak,
    memory_kind,
)
from guided_diffusion.benchmark_table import describe, report
from guided_diffusion.command_line import parse
from guided_diffusion.compiling import compiler_errors
from guided_diffusion.config import (
    DeviceOptions,
    DiffusionOptions,
    ModelOptions,
    build,
    numbers,
    option,
)
from guided_diffusion.dist_util import keep_freed_memory, pick_device, pick_precision
from guided_diffusion.errors import UserError, is_out_of_memory, run_script
from guided_diffusion.files import check_writable, read_json, write_json
from guided_diffusion.logger import console
from guided_diffusion.variants import check_variant
from guided_diffusion.workloads import DataBench, NetworkBench

PARTS = ("network", "training", "sampling", "data")
DATA_SECONDS = 20  # about what the data part takes, most of it to write the phantoms
SAMPLING_PAIRS = 3  # whole cases take long: no more of them are timed by turns


@dataclass
class BenchmarkOptions:
    """The benchmark."""

    out: str = option("./results/benchmark.json", "file for the figures")
    parts: str = option(
        ",".join(PARTS), "what to measure; empty: only count parameters and FLOPs, which works for every size"
    )
    batch_size: int = option(4, "images per training step, and per batch of the loaders", above=0)
    batch_sizes: str = option(
        "", "the training part also times steps on so many images, as 1,2,4,8, by the fast path; for GPUs"
    )
    num_ensemble: int = option(5, "members of an ensemble: sampling and denoising are of one image", above=0)
    sampling_steps: str = option("4,10,20", "numbers of sampling steps; the first is also timed by the plain path")
    repeats: int = option(5, "measurements of each kind, after a warm-up", above=0)
    image_channels: int = option(4, "channels of the images", above=0)
    data_dir: str = option("", "folder of BraTS volumes to load in the data part; empty: phantoms are written for it")
    keep_memory: bool = option(
        True, "keep freed memory, on a CPU, as the scripts do; it speeds up both paths. Compare runs to see by how much"
    )
    compare_memory: bool = option(
        False,
        "measure the network and training parts in a second process too, without keeping freed memory, and set the "
        "fast path against that plain path, which is all as torch does it by itself",
    )
    compile: bool = option(False, "compile the fast path's network by torch.compile; on a CPU this takes minutes")

    def resolve(self, given):
        """Check the lists."""
        for part in self.chosen():
            if part not in PARTS:
                raise UserError(f"--parts {self.parts}: {part} is none of {', '.join(PARTS)}")
        if not self.steps() or min(self.steps()) < 1:
            raise UserError(f"--sampling_steps {self.sampling_steps}: must be like 4,10,20")
        if self.sizes() and min(self.sizes()) < 1:
            raise UserError(f"--batch_sizes {self.batch_sizes}: must be like 1,2,4,8")
        if not self.out.endswith(".json") or Path(self.out).is_dir():
            raise UserError(f"--out {self.out}: must be the name of a .json file")

    def chosen(self):
        """`parts` as a list."""
        return [part.strip() for part in self.parts.split(",") if part.strip()]

    def sizes(self):
        """`batch_sizes` as a tuple of ints."""
        return numbers("batch_sizes", self.batch_sizes, int)

    def steps(self):
        """`sampling_steps` as a list of ints."""
        try:
            return [int(part) for part in self.sampling_steps.split(",")]
        except ValueError:
            raise UserError(f"--sampling_steps {self.sampling_steps}: must be like 4,10,20") from None


@dataclass
class NetworkOptions(ModelOptions):
    """The network, small unless said otherwise."""

    image_size: int = option(64, "pixels along each side of the images; the levels must divide it", above=0)
    num_channels: int = option(32, "width of the first level", above=0)


def main(argv=None):
    """Count, measure the parts that are asked for, write the figures and print them."""
    (options, network, device_options), _ = parse(__doc__, [BenchmarkOptions, NetworkOptions, DeviceOptions], argv)
    diffusion = build(DiffusionOptions, {})
    check_variant(network, diffusion)
    if max(options.steps()) >= diffusion.diffusion_steps:
        raise UserError(f"--sampling_steps {options.sampling_steps}: must be below T = {diffusion.diffusion_steps}")
    device = pick_device(device_options.gpu_dev)
    precision = pick_precision(device_options.precision, device)
    if options.keep_memory:
        keep_freed_memory()
    run = Run(options, network, device, precision, device_options)
    check_writable(Path(options.out).parent, "--out")
    run.measure()
    console().info(report(run.result))
    console().info(f"these figures and more: {options.out}")


class Run:
    """One run of the benchmark, whose `result` is what the JSON file holds."""

    def __init__(self, options, network, device, precision, device_options):
        self.options, self.network, self.device, self.precision = options, network, device, precision
        self.device_options = device_options
        self.counts = counts = count(network, options.image_channels)
        settings = {**dataclasses.asdict(options), **dataclasses.asdict(network)}
        self.result = {
            "machine": describe_machine(device),
            "settings": {**settings, "parts": options.chosen(), "sampling_steps": self.steps()},
            "paths": {
                PLAIN: "fp32, one member at a time, the condition encoded at every step; training as torch does it by "
                "itself, feature maps contiguous and AdamW not fused",
                FAST: f"{precision}, all members in one batch, the condition encoded once; training as the script does"
                + (", compiled" if options.compile else ""),
            },
            "precision": {PLAIN: "fp32", FAST: precision},
            "memory": memory_kind(device),
            "parameters": counts.parameters,
            "flops": {
                "forward": counts.forward,
                "condition": counts.condition,
                "step": counts.step,
                "training_step": TRAINING_FACTOR * options.batch_size * counts.forward,
            },
            "peak": {},
        }

    def steps(self):
        """The numbers of sampling steps; the plain U-Net answers in one."""
        return self.options.steps() if self.has_steps() else [1]

    def has_steps(self):
        """Whether the network denoises; the plain U-Net does not."""
        return self.network.version != "unet"

    def network_parts(self):
        """The parts asked for that need a network, in order."""
        return [part for part in PARTS[:3] if part in self.options.chosen()]

    def measure(self):
        """Measure all parts; the file is written after each, so that an interruption keeps what was done."""
        began = time.monotonic()
        console().info(describe(self.result))
        if self.network_parts():
            bench = NetworkBench(
                self.network,
                self.device,
                self.precision,
                image_channels=self.options.image_channels,
                batch_size=self.options.batch_size,
                members=self.options.num_ensemble,
                compile=self.options.compile,
            )
            self.foresee(bench.time_row())
            for part in self.network_parts():
                self.update_peak()
                self.measure_part(part, bench)
                self.save(began)
            self.update_peak()
        if "data" in self.options.chosen():
            self.measure_data()
        self.save(began)

    def measure_part(self, part, bench):
        """Measure one of the network's parts."""
        with compiler_errors(self.options.compile, f"the {part} part", "leave it or this part out"):
            getattr(self, f"measure_{part}")(bench)

    def update_peak(self):
        """Measure the machine's peak again; the best of the whole run counts, as others may use the machine."""
        for precision in {"fp32", self.precision}:
            now, best = measured_peak(precision, self.device), self.result["peak"].get(precision, {})
            self.result["peak"][precision] = {kind: max(value, best.get(kind, 0)) for kind, value in now.items()}

    def save(self, began):
        """Write the file, with rates and shares of the peak as they are by now."""
        peaks = {precision: max(best.values()) for precision, best in self.result["peak"].items()}
        for part in ("step", "training_step", "sampling"):
            for path, precision in self.result["precision"].items():
                entry = self.result.get(part, {}).get(path)
                if entry:
                    entry["flops_per_second"] = entry["flops"] / entry["seconds"]
                    entry["share_of_peak"] = entry["flops_per_second"] / peaks[precision]
        self.result["seconds"] = round(time.monotonic() - began, 1)
        write_json(self.options.out, self.result)

    # ---- the parts -----------------------------------------------------------------------------------------------

    def sampling_flops(self, path, steps):
        """FLOPs of sampling all members of one image."""
        members, counts = self.options.num_ensemble, self.counts
        if path == PLAIN:
            return members * steps * counts.forward
        return counts.condition + members * steps * counts.step

    def foresee(self, row_seconds):
        """Say how long it may take, from the seconds that one image takes in fp32."""
        repeats, counts = self.options.repeats, self.counts
        turns = repeats + (3 if self.device.type == "cuda" else 1)
        pairs = turns - repeats + min(repeats, SAMPLING_PAIRS)
        pair = [sum(self.sampling_flops(path, steps) for path in (PLAIN, FAST)) for steps in (1, self.steps()[0])]
        flops = {
            "network": turns * (pair[0] + counts.condition),
            "training": TRAINING_FACTOR
            * counts.forward
            * turns
            * (2 * self.options.batch_size + sum(self.options.sizes())),
            "sampling": pairs * pair[1]
            + sum(s * m * counts.forward for s in self.steps() for m in self.table_members()),
        }
        seconds = sum(flops[part] for part in self.network_parts()) / counts.forward * row_seconds
        seconds += DATA_SECONDS if "data" in self.options.chosen() else 0
        compiling = ", and minutes more to compile" if self.options.compile else ""
        console().info(f"this may take {max(seconds / 60, 0.1):.1f} minutes{compiling}; bf16 and GPUs take less")

    def table_members(self):
        """The sizes of ensemble in the table of sampling."""
        return sorted({1, self.options.num_ensemble})

    def measure_network(self, bench):
        """One denoising step, and the condition."""
        with progress("denoising", (4 if self.has_steps() else 3) * (1 + self.options.repeats)) as bar:
            timings = bench.time_step(self.options.repeats, bar.update)
        members = self.options.num_ensemble
        flops = {PLAIN: members * self.counts.forward, FAST: members * self.counts.step or self.counts.condition}
        self.result["step"] = self.comparison(timings, flops, members)
        self.result["condition"] = timings["condition"].as_dict()
        if self.has_steps():
            self.result["step"]["cached"] = {**timings[CACHED].as_dict(), **compare(timings, slow=CACHED)}
            ensemble = timings["condition"].seconds + DEFAULT_STEPS * timings[FAST].seconds
            if self.options.compare_memory:
                self.result["step"]["by_itself"] = self.without_kept_memory("network", "step", timings[FAST])
            self.result["ensemble"] = {
                "plain_seconds": PLAIN_STEPS * timings[PLAIN].seconds,
                "fast_seconds": ensemble,
                "ratio": PLAIN_STEPS * timings[PLAIN].seconds / ensemble,
            }

    def without_kept_memory(self, part, key, fast):
        """What a process that hands freed memory back needs for the paths of a part, and how it compares to ours fast.

        key: under which of the result's keys the part's figures are. fast: the `Timing` of ours.
        """
        console().info("again in a second process, which does not keep freed memory")
        with tempfile.TemporaryDirectory() as folder:
            own = {"out": f"{folder}/figures.json", "parts": part, "batch_sizes": ""}
            own |= {"keep_memory": False, "compare_memory": False}
            groups = (dataclasses.asdict(group) for group in (self.options, self.network, self.device_options))
            flags = {name: value for group in groups for name, value in group.items()} | own
            words = [word for name, value in flags.items() if value != "" for word in (f"--{name}", str(value))]
            subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.DEVNULL)
            figures = read_json(own["out"])[key]
        ours, paths = fast.as_dict(), [path for path in (PLAIN, CACHED, FAST) if path in figures]
        seconds = {path: figures[path]["seconds"] for path in paths}
        ratios = {
            kind: {path: figures[path][f"{kind}seconds"] / ours[f"{kind}seconds"] for path in paths}
            for kind in ("", "processor_")
        }
        return {"seconds": seconds, "ratio": ratios[""], "processor_ratio": ratios["processor_"]}

    def measure_training(self, bench):
        """One training step, and steps on batches of other sizes."""
        with progress("training", 2 * (1 + self.options.repeats)) as bar:
            timings = bench.time_training(self.options.repeats, bar.update)
        flops = dict.fromkeys((PLAIN, FAST), self.result["flops"]["training_step"])
        self.result["training_step"] = result = self.comparison(timings, flops, self.options.batch_size)
        if self.options.compare_memory:
            result["by_itself"] = self.without_kept_memory("training", "training_step", timings[FAST])
        self.result["training_table"] = table = []
        for size in self.options.sizes():
            try:
                timing = bench.time_batch(size, self.options.repeats)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                console().info(f"a training step on {size} images runs out of memory; larger ones are left out")
                break
            rate = TRAINING_FACTOR * size * self.counts.forward / timing.seconds
            table.append(
                {
                    "batch_size": size,
                    **timing.as_dict(),
                    "images_per_second": size / timing.seconds,
                    "flops_per_second": rate,
                    "share_of_matmul_peak": rate / self.result["peak"][self.precision]["matmul"],
                }
            )

    def measure_sampling(self, bench):
        """Whole cases: by turns in the first number of steps, then the table of steps and members."""
        steps, members = self.steps(), self.options.num_ensemble
        repeats = min(self.options.repeats, SAMPLING_PAIRS)
        cells = [(s, m) for m in self.table_members() for s in steps]
        turn = steps[0] * members  # the bar counts denoising steps of members, so that its ETA is about right
        with progress("sampling", 2 * (1 + repeats) * turn + sum(s * m for s, m in cells), "member-step") as bar:
            timings, difference = bench.time_sampling(steps[0], repeats, lambda: bar.update(turn))
            table = []
            for s, m in cells:
                timing = bench.time_case(s, m, self.options.repeats)
                table.append({"steps": s, "members": m, **timing.as_dict()})
                bar.update(s * m)
        flops = {path: self.sampling_flops(path, steps[0]) for path in (PLAIN, FAST)}
        self.result["sampling"] = {
            **self.comparison(timings, flops, 1),
            "steps": steps[0],
            "members": members,
            "largest_difference": difference,
        }
        self.result["sampling_table"] = table

    def comparison(self, timings, flops, images):
        """Both paths' figures and their ratio. images: how many one call sends through."""
        result = {}
        for path in (PLAIN, FAST):
            timing = timings[path]
            result[path] = {**timing.as_dict(), "images_per_second": images / timing.seconds, "flops": flops[path]}
        return {**result, **compare(timings)}

    def measure_data(self):
        """Loading of pictures and of volumes."""
        with tempfile.TemporaryDirectory() as folder, progress("loading", 4 * (1 + self.options.repeats)) as bar:
            data_dir = self.options.data_dir
            bench = DataBench(Path(folder), self.network.image_size, self.options.batch_size, data_dir)
            loaded = bench.time_loading(self.options.repeats, bar.update)
        naive, naive_items = loaded["brats_naive"]
        self.result["data"] = result = {
            name: {**timing.as_dict(), "items": items, "items_per_second": items / timing.seconds}
            for name, (timing, items) in loaded.items()
        }
        for name in ("brats_cold", "brats_cached"):
            timing, items = loaded[name]
            result[name] |= compare({PLAIN: naive, FAST: timing}, scale=items / naive_items)
        result["brats_naive"]["volumes"] = bench.described


def progress(what, total, unit="call"):
    """A bar with the time left."""
    return tqdm(total=total, desc=what, unit=unit, dynamic_ncols=True)


if __name__ == "__main__":
    run_script(main)
