"""Measure how fast a network trains, denoises and samples here, and how much memory it takes, beside a plain path.

The fast path is what the commands do. A ratio is quoted from one run alone: machines differ and are shared. Seconds of
the published code, which another machine measured, stand in the table of the published size, without a ratio.
"""

import dataclasses
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from measuring import machine_kind, matmul_peak, ratio, resident_size, time_by_turns
from workloads import CACHED, FAST, PLAIN, NetworkBench, count

from guided_diffusion.config.command_line import parse
from guided_diffusion.config.fields import check_variant, option
from guided_diffusion.config.options import DeviceOptions, DiffusionOptions, ModelOptions
from guided_diffusion.config.presets import PRESETS
from guided_diffusion.config.recipe import RECIPES
from guided_diffusion.config.values import numbers
from guided_diffusion.io.files import check_writable, write_json
from guided_diffusion.io.memory import free_memory_on
from guided_diffusion.runtime.console import console, text_table
from guided_diffusion.runtime.distributed import keep_freed_memory, pick_device, pick_precision
from guided_diffusion.runtime.errors import UserError, is_out_of_memory, run_script
from guided_diffusion.runtime.live_memory import gigabytes
from guided_diffusion.runtime.program import prepare_children
from guided_diffusion.training.parallel import compiler_errors

PARTS = ("training", "denoising", "sampling", "answer")
STARTUP = "startup"  # beside them, only if asked for: it starts processes and times no network
TRAINING_FACTOR = 3  # a forward pass, and a backward pass at twice its cost
PUBLISHED = {"training step, 2 images": 26.5, "denoising step, 1 member": 2.7}  # seconds of the published code
PUBLISHED_ON = "quoted: the published code, preset B at 256 pixels, on another machine, two cores with AMX bf16"
COMMANDS = {  # for a Python of its own, with the package on its path
    "import torch": ("-c", "import torch"),
    "train --help": ("-m", "guided_diffusion", "train", "--help"),
    "imports of train": ("-c", "import guided_diffusion.cli.train"),
    "imports of sample": ("-c", "import guided_diffusion.cli.sample"),
}
EARLY = 10  # cases, after which everything that sampling keeps is there
EXAMPLE = "python scripts/benchmarks/speed.py --version v2 --preset B --parts training --batch_sizes 1,2,4,8"


@dataclass(frozen=True)
class SpeedOptions:
    """The measurement."""

    out: str = option("./results/speed.json", "file for the figures")
    parts: str = option(
        ",".join(PARTS),
        "what to time, separated by commas; startup is one more, the start of the commands; empty: only count "
        "parameters and FLOPs, for any size",
    )
    batch_sizes: str = option("4", "images of a training step; the plain path is timed with the first of the list")
    num_ensemble: int = option(5, "members; denoising and sampling are of one image", above=0)
    sampling_steps: str = option("4,10,20", "numbers of sampling steps; the plain path takes the first of the list")
    repeats: int = option(5, "rounds in which each call is timed, by turns, after a warm-up", above=0)
    recipe: str = option(
        "none",
        "network and diffusion as a recipe of training sets them; auto: the default one",
        choices=("auto", "none", *RECIPES),
    )
    cases: int = option(0, f"also sample so many cases and compare the memory after {EARLY} of them", minimum=0)
    image_channels: int = option(4, "channels of the images", above=0)
    keep_memory: bool = option(True, "keep freed memory, on a CPU, as the scripts do; it speeds up both paths")
    compile: bool = option(False, "compile the fast path's network by torch.compile; on a CPU this takes minutes")

    def resolve(self, given):
        """Check the lists and the file's name; returns the options."""
        for part in self.chosen():
            if part not in (*PARTS, STARTUP):
                raise UserError(f"--parts {self.parts}: {part} is none of {', '.join((*PARTS, STARTUP))}")
        for name in ("batch_sizes", "sampling_steps"):
            values = numbers(name, getattr(self, name), int)
            if not values or min(values) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: must be whole numbers above 0, like 1,2,4")
        if 0 < self.cases <= EARLY:
            raise UserError(f"--cases {self.cases}: must be above {EARLY}, or 0 to leave it out")
        if not self.out.endswith(".json") or Path(self.out).is_dir():
            raise UserError(f"--out {self.out}: must be the name of a .json file")
        return self

    def chosen(self):
        """`parts` as a list."""
        return [part.strip() for part in self.parts.split(",") if part.strip()]


@dataclass(frozen=True)
class NetworkOptions(ModelOptions):
    """The network, small by default."""

    image_size: int = option(64, "pixels along each side of the images; the levels must divide it", above=0)
    num_channels: int = option(32, "width of the first level", above=0)


def main(argv=None):
    """Count, time the chosen parts, write the figures and print them."""
    speed = prepared(Speed, argv)
    options = speed.options
    check_writable(Path(options.out).parent, "--out")
    console().info(speed.heading())
    for part in options.chosen():
        with compiler_errors(options.compile, f"the {part} part", "leave it or this part out"):
            getattr(speed, part)()
        write_json(options.out, speed.result)
    if options.cases:
        speed.memory_over_cases()
    write_json(options.out, speed.result)
    console().info(f"{speed.table()}\nthese figures: {options.out}")


def prepared(kind, argv):
    """An instance of `kind`, `Speed` or a subclass, for a command line of this script."""
    groups = [SpeedOptions, NetworkOptions, DiffusionOptions, DeviceOptions]
    (options, network, diffusion, device_options), given = parse(__doc__, groups, argv, example=EXAMPLE)
    check_variant(network, diffusion)
    if max(numbers("sampling_steps", options.sampling_steps, int)) >= diffusion.diffusion_steps:
        raise UserError(f"--sampling_steps {options.sampling_steps}: must be below T = {diffusion.diffusion_steps}")
    device = pick_device(device_options.gpu_dev, "gpu_dev" in given)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # the timer waits for the current one
    if options.keep_memory:
        keep_freed_memory()
    return kind(options, network, diffusion, device, pick_precision(device_options.precision, device))


class Speed:
    """One run. result is what the JSON file holds: the machine, the settings, the counts, and `rows`, one for each call
    that was timed."""

    def __init__(self, options, network, diffusion, device, precision):
        self.options, self.device, self.precision = options, device, precision
        self.counts = count(network, options.image_channels)
        self.bench = None
        self.result = {
            "machine": machine_kind(precision, device),
            "torch": torch.__version__,
            "load": round(os.getloadavg()[0], 2),  # above 0 before the run began: others' work
            "settings": dataclasses.asdict(options) | dataclasses.asdict(network),
            "precision": {PLAIN: "fp32", CACHED: "fp32", FAST: precision},
            "parameters": self.counts.parameters,
            "flops": {key: getattr(self.counts, key) for key in ("forward", "condition", "step")},
            "matmul_peak": {},
            "rows": [],
        }
        if all(getattr(network, name) == value for name, value in PRESETS["B"].items()):
            self.result["published"] = {"where": PUBLISHED_ON, "seconds": PUBLISHED}
        if set(options.chosen()) - {STARTUP} or options.cases:
            peaks = {name: matmul_peak(name, device) for name in {"fp32", precision}}
            self.result["matmul_peak"] = peaks
            self.bench = NetworkBench(
                network,
                device,
                precision,
                image_channels=options.image_channels,
                members=options.num_ensemble,
                compile=options.compile,
                diffusion=diffusion,
            )

    def training(self):
        """Training steps: both paths with the first batch size, the fast one with the others."""
        for index, size in enumerate(numbers("batch_sizes", self.options.batch_sizes, int)):
            flops = TRAINING_FACTOR * size * self.counts.forward
            paths = (FAST,) if index else (PLAIN, FAST)
            need, free = max(self.bench.training_memory(path, size) for path in paths), free_memory_on(self.device)
            if need > free:
                line = f"a training step on {size} images needs about {gigabytes(need)}, {gigabytes(free)} are free"
                if not index:
                    raise UserError(f"--batch_sizes {self.options.batch_sizes}: {line}; begin with fewer images")
                console().info(f"{line}; larger ones are left out")
                break
            try:
                calls = {path: self.bench.training_step(path, size) for path in paths}
                self.add(f"training step, {size} images", calls, dict.fromkeys(paths, flops))
            except RuntimeError as error:
                if not index or not is_out_of_memory(error):
                    raise
                console().info(f"a training step on {size} images runs out of memory; larger ones are left out")
                break

    def denoising(self):
        """One denoising step of all members, and the encoding of the image."""
        members, counts = self.options.num_ensemble, self.counts
        paths = (PLAIN, CACHED, FAST) if self.bench.has_steps else (PLAIN, FAST)
        flops = {PLAIN: members * counts.forward, CACHED: members * counts.step}
        flops[FAST] = members * counts.step or counts.condition
        with self.bench.context(FAST):  # keeps the weights in half precision from step to step, as sampling does
            calls = {path: self.bench.denoising_step(path) for path in paths}
            self.add(f"denoising step, {members} members", calls, flops)
            self.add("condition, once an image", {FAST: self.bench.encode}, {FAST: counts.condition})

    def sampling(self):
        """Whole ensembles of one image by DPM-Solver++: both paths in the first number of steps, the fast one in the
        others. The fast path encodes the image at every scale that `medsegdiff sample` takes by default."""
        members, counts, masks = self.options.num_ensemble, self.counts, {}

        def drawing(path, plan):
            def draw():
                masks[path] = self.bench.draw(path, plan)

            return draw

        steps_asked = numbers("sampling_steps", self.options.sampling_steps, int) if self.bench.has_steps else (1,)
        for index, steps in enumerate(steps_asked):
            plan = self.bench.plan(diffusion_steps=steps, dpm_solver=True)
            paths = (FAST,) if index else (PLAIN, FAST)
            flops = {PLAIN: members * steps * counts.forward, FAST: self.flops_of(plan, members)}
            self.add(f"ensemble of {members}, {steps} steps", {path: drawing(path, plan) for path in paths}, flops)
            if not index:  # the plain path has one scale
                alike = self.bench.draw(FAST, dataclasses.replace(plan, scales=()))
                self.result["largest_difference"] = (masks[PLAIN] - alike).abs().max().item()

    def answer(self):
        """What `medsegdiff sample` does for one image by default, and with --num_ensemble alone."""
        bench, plan = self.bench, self.bench.plan()
        members = bench.default_members()  # 0 or 1: an answer in one pass, by the condition model or the plain U-Net
        scales = ", ".join(f"{scale:g}" for scale in (1, *plan.scales))
        if members < 2:
            call = (lambda: bench.draw(FAST, plan, 1)) if members else (lambda: bench.answer(plan))
            flops = {FAST: bench.encodings(plan) * self.counts.condition}
            self.add(f"default answer: one pass, scales {scales}", {FAST: call}, flops)
            members = self.options.num_ensemble
        if bench.has_steps:
            flops = {FAST: self.flops_of(plan, members)}
            what = f"default ensemble of {members}: {plan}, scales {scales}"
            self.add(what, {FAST: lambda: bench.draw(FAST, plan, members)}, flops)

    def flops_of(self, plan, members):
        """FLOPs of an ensemble by the fast path, with every encoding that test-time augmentation asks for."""
        return self.bench.encodings(plan) * self.counts.condition + members * len(plan.timesteps) * self.counts.step

    def startup(self):
        """The start of processes."""
        self.result["startup"] = startup_seconds(self.options.repeats, self.device)

    def add(self, what, calls, flops):
        """Time the calls, {path: function}, by turns and add a row for each. flops: {path: FLOPs of a call}."""
        timings = time_by_turns(calls, self.options.repeats, self.device)
        for path, timing in timings.items():
            rate = flops[path] / timing.seconds
            row = {"what": what, "path": path, "seconds": timing.seconds, "rounds": timing.rounds}
            row |= {"peak_memory_bytes": timing.memory, "flops": flops[path], "flops_per_second": rate}
            row["share_of_matmul_peak"] = rate / self.result["matmul_peak"][self.result["precision"][path]]
            if path != FAST:
                row |= dict(zip(("ratio", "ratio_min", "ratio_max"), ratio(timing, timings[FAST]), strict=True))
            self.result["rows"].append(row)

    def memory_over_cases(self):
        """The process's resident size after the first `EARLY` cases and after all: it must stay flat."""
        steps, sizes = numbers("sampling_steps", self.options.sampling_steps, int)[0], []
        plan = self.bench.plan(diffusion_steps=steps, dpm_solver=True)
        for _ in range(self.options.cases):
            self.bench.draw(FAST, plan)
            sizes.append(resident_size())
        self.result["resident_bytes"] = {"early": sizes[EARLY - 1], "last": sizes[-1]}

    # ---- as text -----------------------------------------------------------------------------------------------------

    def heading(self):
        """The machine, the network and its counts."""
        result, settings, counts = self.result, self.result["settings"], self.counts
        peaks = ", ".join(f"{name} {value / 1e9:.0f}" for name, value in sorted(result["matmul_peak"].items()))
        lines = [
            f"machine: {result['machine']}, load {result['load']}, torch {result['torch']}",
            f"network: {settings['version']}, {settings['image_size']} pixels, {settings['num_channels']} channels, "
            f"{counts.parameters / 1e6:.2f} M parameters",
            f"GFLOPs of one image: {counts.forward / 1e9:.4g} forward = {counts.condition / 1e9:.4g} condition + "
            f"{counts.step / 1e9:.4g} a denoising step; a training step counts as {TRAINING_FACTOR} forward passes",
            f"plain path: fp32, one member at a time, the image encoded at every step; fast path: {self.precision}, "
            "all members in one batch, the image encoded once at each scale of test-time augmentation",
        ]
        return "\n".join(lines + ([f"peak of matrix products, GFLOP/s: {peaks}"] if peaks else []))

    def table(self):
        """The timed calls as a table."""
        head = ["", "path", "seconds", "min..max", "GFLOP/s", "of peak", "memory MB", "/ fast", "min..max"]
        rows = []
        for row in self.result["rows"]:
            cells = [row["what"], row["path"], f"{row['seconds']:.3g}"]
            cells += [f"{min(row['rounds']):.3g}..{max(row['rounds']):.3g}", f"{row['flops_per_second'] / 1e9:.3g}"]
            cells += [f"{row['share_of_matmul_peak']:.0%}", f"{row['peak_memory_bytes'] / 2**20:.0f}"]
            if "ratio" in row:
                cells += [f"{row['ratio']:.2f} x", f"{row['ratio_min']:.2f}..{row['ratio_max']:.2f}"]
            rows.append(cells)
        published = self.result.get("published", {"seconds": {}})
        rows += [[what, "published*", f"{seconds:.3g}"] for what, seconds in published["seconds"].items()]
        lines = ["", text_table(head, rows)] if rows else []
        if published["seconds"]:
            lines.append(f"* {published['where']}; no ratio is taken to it")
        if "startup" in self.result:
            times = self.result["startup"]
            each = [f"{name} {s:.2f} s ({s / times['import torch']:.2f} x)" for name, s in times.items()]
            lines.append(f"start of a process, and its ratio to the import of torch: {', '.join(each)}")
        if "largest_difference" in self.result:
            lines.append(f"largest difference of the masks of both paths: {self.result['largest_difference']:.2g}")
        if "resident_bytes" in self.result:
            early, last = (self.result["resident_bytes"][key] for key in ("early", "last"))
            lines.append(
                f"resident size after {EARLY} cases: {early / 2**20:.1f} MB, after {self.options.cases}: "
                f"{last / 2**20:.1f} MB ({100 * (last / early - 1):+.2f} %)"
            )
        return "\n".join(lines)


def startup_seconds(repeats, device):
    """Seconds in which a Python of its own imports torch, prints a help, and imports what commands need, by name."""
    prepare_children()

    def start(words):
        return lambda: subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)

    timings = time_by_turns({name: start(words) for name, words in COMMANDS.items()}, repeats, device)
    return {name: timing.seconds for name, timing in timings.items()}


if __name__ == "__main__":
    run_script(main)
