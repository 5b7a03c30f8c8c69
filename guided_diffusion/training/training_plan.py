"""The plan of a training run: sizes, crops, network and steps from the data's fingerprint, each with a reason.

`plan_training` is a pure function; `step_seconds` measures what it asks for, and `run` hands the values to a new run.
"""

import math
from dataclasses import dataclass, field

from ..data.fingerprint import GRIDS
from ..inference.tiles import windows_of
from ..runtime.console import counted
from .validation import MEMBERS, STEPS

# A command that sets one of these has its sizes, and a plan would change what it does.
SIZE_FLAGS = ("preset", "image_size", "patch_size", "num_channels", "channel_mult", "num_res_blocks")

# ---- numbers to tune -----------------------------------------------------------------------------------------------

LEAST_ROUND_TRIP_WHOLE = 0.97  # Dice; a grid below it loses more than networks differ by (compact lesions have 0.99)
EVERYWHERE = 0.5  # coverage from which crops show as much as the whole image, at its own resolution
BASE_SIDE, SMALL_SIDE = 128, 64  # whole images have at least the first, if they are larger than the second
CROP_SIDES = (64, 128, 256)  # sides of crops
ENOUGH_LARGER = 1.5  # an image is cut into crops if its longer side is so many times the crop's
PATCHES = (1, 2, 4)  # patch sizes of whole images: larger ones draw coarse borders
CROP_PATCHES = (1, 2)  # of crops, which are there for what is thin
GPU_SIDE = 256  # of whole images on a GPU, where they are that large
BATCH = 8  # images of a step, as the accuracy benchmark has it
SHORT_MINUTES = 30  # a shorter limit leaves the diffusion SHORT_SHARE of its time
SHORT_SHARE = 0.95  # --condition_share of a short run: the answer in one pass needs no diffusion
HOUR = 3600  # seconds that a run without --max_minutes may take on a CPU
PASSES = 100  # passes over the training images of a run without --max_minutes
CPU_STEPS = (2400, 6000)  # the least and the most steps of such a run on a CPU
GPU_STEPS = (10_000, 60_000)  # and on a GPU
PRESET_MEMORY = {"B": 24e9, "S": 12e9}  # bytes of a GPU that the published sizes want, at `BATCH` in bf16
MOST_EMPTY = 0.5  # share of slices with nothing marked above which as many with as without are trained on
VALIDATION_SHARE = 0.03  # of the run's time, all validations together
VALIDATIONS, VALIDATIONS_LONG = 3, 8  # in a run of up to `SHORT_MINUTES`, and in a longer one
MOST_VALIDATED = 8  # cases of a validation
DENOISING = 0.3  # a denoising pass, in units of a pass of the condition model
VIEWS = {"any": 24, "upright": 6}  # passes over an image in test-time augmentation: symmetries and scales
MOST_MEASURED = 4  # networks whose steps are timed
FAR_TOO_SLOW = 3.0  # times the time, by the arithmetic from another network: larger ones use a machine better


@dataclass(frozen=True)
class Network:
    """A size of network. lr: its learning rate. least_steps: fewer leave it worse than a smaller one. grids: sides of
    its first level. preset: of a published size, else "". memory: bytes of a GPU that it wants; 0: any, a CPU too."""

    channels: int
    multipliers: tuple
    blocks: int
    lr: float
    least_steps: int
    grids: tuple
    preset: str = ""
    memory: float = 0.0


NETWORKS = (
    Network(16, (1, 2, 4, 8), 1, 1e-3, 600, (32, 48, 64, 96, 128)),
    Network(32, (1, 2, 4, 8), 1, 1e-3, 1500, (32, 48, 64, 96, 128)),
    Network(64, (1, 2, 4, 4), 1, 5e-4, 5000, (32, 48, 64, 96, 128)),
    Network(128, (1, 1, 2, 2, 4), 2, 1e-4, 20_000, (256,), "S", PRESET_MEMORY["S"]),
    Network(128, (1, 1, 2, 2, 4, 4), 2, 1e-4, 20_000, (256,), "B", PRESET_MEMORY["B"]),
)


@dataclass(frozen=True)
class Candidate:
    """A network on images, or crops, of image_size pixels, of which patch_size x patch_size become one."""

    network: Network
    image_size: int
    patch_size: int

    @property
    def grid(self):
        """The side of the network's first level."""
        return self.image_size // self.patch_size

    @property
    def cost(self):
        """The arithmetic of a step on one image, in units that are the same for all candidates."""
        network, total = self.network, 0.0
        for level, multiplier in enumerate(network.multipliers):
            width, pixels = network.channels * multiplier, (self.grid / 2**level) ** 2
            total += pixels * width**2 * (4 * network.blocks + 1)  # two convolutions a block, down and up
        return total + self.grid**2 * self.patch_size**2 * network.channels

    @property
    def flags(self):
        """The options of the network by name."""
        sizes = {"image_size": self.image_size, "patch_size": self.patch_size}
        if self.network.preset:
            return {"preset": self.network.preset, **sizes}
        # Attention at the third level, or below it where that is large.
        attention = self.grid // 4 if self.grid // 4 <= 16 else self.grid // 8
        return {
            **sizes,
            "num_channels": self.network.channels,
            "channel_mult": ",".join(map(str, self.network.multipliers)),
            "num_res_blocks": self.network.blocks,
            "attention_resolutions": str(attention),
        }


@dataclass(frozen=True)
class Machine:
    """Where the run will compute. kind: "cpu", "cuda" or "mps". memory: the device's free bytes. cores: usable ones."""

    kind: str
    memory: float = math.inf
    cores: int = 1


@dataclass(frozen=True)
class Choice:
    """Options that are chosen together, by name, and why. given: those among them that the user set, by name."""

    what: str
    values: dict
    why: str
    given: dict = field(default_factory=dict)

    @property
    def line(self):
        """One line for the user. Values that the user set need no reason."""
        parts = [f"--{name} {value}" for name, value in self.values.items()]
        parts += [f"--{name} {value} (as you set it)" for name, value in self.given.items()]
        if self.given and not self.values:
            return " ".join(parts)
        return f"{' '.join(parts)}: {self.why}" if parts else f"{self.what}: {self.why}"


@dataclass(frozen=True)
class Plan:
    """choices: a list of `Choice`. candidate: the network. steps: the expected number. step_seconds: of one of them, as
    measured or as estimated by the arithmetic. seconds: that the run is expected to take."""

    choices: tuple
    candidate: Candidate
    steps: int
    step_seconds: float
    seconds: float

    @property
    def values(self):
        """The options to set, by name: all that the user left open."""
        return {name: value for choice in self.choices for name, value in choice.values.items()}

    @property
    def expectation(self):
        """A line on steps and minutes."""
        return (
            f"about {counted(self.steps, 'step')} of {self.step_seconds:.2g} s, {_minutes(self.seconds)}, by the time "
            "of a few steps on this machine"
        )


def may_plan(train, given):
    """Whether a new run of these `TrainOptions` is planned. given: the names that the user set."""
    named = "recipe" in given and train.recipe != "staged"
    return not (train.overfit or train.init_from or named or set(SIZE_FLAGS) & set(given))


def plan_training(found, machine, values, given, seconds_of):
    """The `Plan` of a new run.

    found: the `Fingerprint` of its training cases. machine: a `Machine`. values: all options by name, as parsed; those
    that the user set, `given`, win. seconds_of(flags): the seconds of a training step of a network with these options,
    at values["batch_size"], or `BATCH` where it is open.
    """
    task = _Task(found, machine, values, frozenset(given), seconds_of)
    view, sides, why = task.choose_view()
    candidate = task.choose_network(view, sides)
    step, last = task.times(candidate)
    steps, seconds = task.expected_steps(candidate, step, last)
    choices = [
        task.view_choice(candidate, view, why),
        task.network_choice(candidate, step),
        task.choice("batch", {"batch_size": BATCH}, "enough for steady gradients, and more of them in the time"),
        *task.step_choices(candidate, steps, seconds),
        task.augmentation_choice(),
        task.slices_choice(),
        task.validation_choice(candidate, view, steps, seconds, step),
        task.orientation_choice(),
    ]
    choices = tuple(choice for choice in choices if choice is not None)
    return Plan(choices, candidate, steps, step, seconds)


class _Task:
    """What a plan is made for; its methods make the parts of the plan."""

    def __init__(self, found, machine, values, given, seconds_of):
        self.found, self.machine, self.values, self.given = found, machine, values, given
        self.seconds_of, self.measured = seconds_of, {}
        self.minutes = values["max_minutes"]
        self.batch = values["batch_size"] if "batch_size" in given else BATCH
        self.is_staged = values["condition_steps"] == -1 and values["version"] == "v2"

    def choice(self, what, values, why):
        """A `Choice` of the values that the user left open."""
        left = {name: value for name, value in values.items() if name not in self.given}
        return Choice(what, left, why, {name: self.values[name] for name in values if name in self.given})

    # ---- whole images or crops -------------------------------------------------------------------------------------

    def choose_view(self):
        """("whole" or "crop", the sides to choose from, why)."""
        found, needed, base, crops = self.found, self.whole_side(), self.base_side, self.crop_sides()
        trip = found.round_trip(base)
        if "crop" in self.given and self.values["crop"]:
            return "crop", crops, "you asked for crops, at the images' own resolution"
        if "crop" in self.given:
            side = needed or self.sides[-1]
            return "whole", self.up_to_gpu(side), f"you asked for whole images; {self._kept(side)}"
        if math.isnan(trip):
            why = "nothing is marked in the masks looked at, so nothing speaks for crops"
            return "whole", self.up_to_gpu(base), why
        if needed == base:
            return "whole", self.up_to_gpu(base), f"whole images: {self._kept(base)}"
        lost = self._kept(base, "only ")
        if found.coverage >= EVERYWHERE:
            why = f"and {found.coverage:.0%} of the image's parts have something marked"
        elif needed and self.is_affordable(self.candidates("whole", [needed])):
            return "whole", self.up_to_gpu(needed), f"whole images on a larger grid: {lost}; {self._kept(needed)}"
        else:
            why = "and a grid that keeps them " + ("takes too long here" if needed else f"has over {GRIDS[-1]} pixels")
        return "crop", crops, f"crops at the images' own resolution: {lost}, {why}"

    def view_choice(self, candidate, view, why):
        """The `Choice` of the size, and of crops."""
        crop = {"crop": view == "crop"} if view == "crop" or "crop" in self.given else {}  # else it is the default
        return self.choice("view", {"image_size": candidate.image_size} | crop, why)

    @property
    def base_side(self):
        """The smallest side to which whole images shrink, or are enlarged."""
        return SMALL_SIDE if max(self.found.sides[2]) <= SMALL_SIDE else BASE_SIDE

    @property
    def sides(self):
        """The sides of whole images to choose from: up to the first that holds the median image."""
        sides = [self.base_side]
        for side in GRIDS:
            if side > sides[-1] and sides[-1] < self.found.side:
                sides.append(side)
        return sides

    def up_to_gpu(self, side):
        """The side, and on a GPU `GPU_SIDE` too, if the median image shrinks to that."""
        larger = self.machine.kind == "cuda" and side < GPU_SIDE <= self.found.side
        return [side, GPU_SIDE] if larger else [side]

    def whole_side(self):
        """The smallest side whose round trip is good enough; None if there is none."""
        trips = ((side, self.found.round_trip(side)) for side in self.sides)
        good = [side for side, trip in trips if trip >= LEAST_ROUND_TRIP_WHOLE or side >= self.found.side]
        return good[0] if good else None

    def crop_sides(self):
        """Sides of crops that are clearly smaller than the images; the smallest one for small images."""
        return [side for side in CROP_SIDES if ENOUGH_LARGER * side <= self.found.side] or [CROP_SIDES[0]]

    def _kept(self, side, only=""):
        trip = self.found.round_trip(side)
        if math.isnan(trip):
            return "nothing is marked"
        if side >= max(self.found.sides[2]):
            return f"none that was looked at is larger than {side} pixels"
        worst = " (the worst class)" if len(self.found.classes) > 1 else ""
        return f"masks shrunk to {side} pixels and enlarged again keep {only}a Dice of {trip:.3f}{worst}"

    # ---- the network -----------------------------------------------------------------------------------------------

    def candidates(self, view, sides):
        """The networks on whole images or crops of these sides, the cheapest first."""
        made = [
            Candidate(network, side, patch)
            for side in sides
            for patch in (PATCHES if view == "whole" else CROP_PATCHES)
            for network in NETWORKS
            if side % patch == 0 and side // patch in network.grids and self._has_room(network)
        ]
        return sorted(made, key=lambda candidate: candidate.cost)

    def _has_room(self, network):
        return not network.memory or (self.machine.kind == "cuda" and self.machine.memory >= network.memory)

    def choose_network(self, view, sides):
        """The largest candidate that takes enough steps in the time; the cheapest if none does."""
        candidates = self.candidates(view, sides)
        self.measure(candidates[0])
        for _ in range(MOST_MEASURED):
            fitting = [candidate for candidate in candidates if self.is_enough(candidate)]
            best = fitting[-1] if fitting else candidates[0]
            if best in self.measured or len(self.measured) == MOST_MEASURED:
                break
            self.measure(best)
        known = [candidate for candidate in candidates if candidate in self.measured and self.is_enough(candidate)]
        return known[-1] if known else candidates[0]

    def is_affordable(self, candidates):
        """Whether the cheapest candidate takes enough steps in the time. One that is far from it is not timed."""
        self.measure(self.candidates("whole", [self.base_side])[0])
        if self.is_in_time(candidates[0], FAR_TOO_SLOW):
            self.measure(candidates[0])
        return self.is_in_time(candidates[0])

    def is_enough(self, candidate):
        """Whether the candidate takes enough steps, which the user's own limit on them may forbid, in the time."""
        return not 0 < self.asked_steps < candidate.network.least_steps and self.is_in_time(candidate)

    def is_in_time(self, candidate, leeway=1.0):
        """Whether the candidate takes its steps in so many times the time."""
        if self.machine.kind == "cuda" and not self.minutes:
            return True
        first, _ = self.times(candidate)
        return leeway * self.time_for_steps(first) >= self.wanted_steps(candidate) * first

    def wanted_steps(self, candidate):
        """The steps that a candidate should get: with a time limit at least so many."""
        if self.minutes:
            least = candidate.network.least_steps
            return min(least, self.asked_steps or least)
        return self.planned_steps(candidate)

    def planned_steps(self, candidate):
        """The steps of a run without a time limit: those asked for, else `PASSES` passes over the images in bounds."""
        if self.asked_steps:
            return self.asked_steps
        low, high = GPU_STEPS if self.machine.kind == "cuda" else CPU_STEPS
        low = max(low, min(candidate.network.least_steps, high))
        return int(min(max(math.ceil(PASSES * self.found.images / self.batch), low), high))

    @property
    def asked_steps(self):
        """The steps after which the user lets the run end; 0 if that is open."""
        asked = [self.values[name] for name in ("max_steps", "lr_anneal_steps") if name in self.given]
        ends = [steps for steps in asked if steps > 0]  # the decay's -1 and 0 end no run
        return min([self.values["max_steps"], *ends]) if ends else 0

    def time_for_steps(self, step):
        """The seconds of the first stage, or of the run without stages, less the first reading of the images."""
        total = self.minutes * 60 if self.minutes else HOUR
        share = self.condition_share if self.is_staged else 1.0
        images = min(self.found.images, total / step * self.batch)
        reading = images * self.found.read_seconds / self.machine.cores
        return max(share * total - reading, share * total / 2)

    @property
    def condition_share(self):
        """--condition_share of the run."""
        if "condition_share" in self.given or not 0 < self.minutes < SHORT_MINUTES:
            return self.values["condition_share"]
        return SHORT_SHARE

    def measure(self, candidate):
        """Measure the steps of a candidate once."""
        if candidate not in self.measured:
            self.measured[candidate] = self.seconds_of(self.network_values(candidate))

    def network_values(self, candidate):
        """The options of a candidate's network, and of its training step, that the user left open."""
        values = candidate.flags | {"batch_size": self.batch}
        if self.is_staged and candidate.patch_size >= 4:
            values["diffusion_level"] = 0  # the patches are coarse enough for the diffusion's first level
        return {name: value for name, value in values.items() if name not in self.given}

    def times(self, candidate):
        """The seconds of a step of the first and of the second stage, both the same without stages: as measured, else
        by the arithmetic from the measured candidate that is most alike."""
        if candidate in self.measured:
            return self.measured[candidate]
        near = min(self.measured, key=lambda other: abs(math.log(other.cost / candidate.cost)))
        ratio = candidate.cost / near.cost
        return tuple(seconds * ratio for seconds in self.measured[near])

    def network_choice(self, candidate, step):
        """The `Choice` of the network."""
        values = {name: value for name, value in self.network_values(candidate).items() if name != "batch_size"}
        values.pop("image_size", None)
        least, asked = candidate.network.least_steps, self.asked_steps
        time = f"{self.minutes:g} minute{'s' * (self.minutes != 1)}" if self.minutes else _minutes(HOUR)
        if 0 < asked < least:
            why = f"the smallest network: larger ones need more than your {counted(asked, 'step')}"
        elif not self.is_in_time(candidate):
            why = f"the smallest network, and even its {self.wanted_steps(candidate)} steps take more than {time}"
        elif candidate.network.preset and not self.minutes:
            why = f"the published size {candidate.network.preset}, for which the GPU has the memory"
        elif self.minutes:
            why = f"the largest network that takes the {least} steps it needs in {time}"
        elif asked:
            why = f"the largest network for your {counted(asked, 'step')}, in {time} at most"
        else:
            why = f"the largest network whose steps take {time} at most"
        return self.choice("network", values, f"{why} ({step:.2g} s a step of {counted(self.batch, 'image')})")

    # ---- the steps -------------------------------------------------------------------------------------------------

    def expected_steps(self, candidate, first, last):
        """(steps, seconds) of the run. first, last: the seconds of a step in each stage."""
        share = self.condition_share if self.is_staged else 1.0
        if self.minutes:
            seconds = self.minutes * 60
            steps = int(self.time_for_steps(first) / first + (1 - share) * seconds / last)
            limit = self.asked_steps or steps
            return (max(steps, 1), seconds) if steps <= limit else (limit, limit / steps * seconds)
        steps = self.planned_steps(candidate)
        if not self.asked_steps and not self.is_enough(candidate):
            steps = max(1, int(self.time_for_steps(first) / first))
        reading = self.found.images * self.found.read_seconds / self.machine.cores
        return steps, steps * (share * first + (1 - share) * last) + reading

    def step_choices(self, candidate, steps, seconds):
        """The `Choice`s of the learning rate, its decay and the stages."""
        width = candidate.network.channels
        yield self.choice("learning rate", {"lr": candidate.network.lr}, f"for networks of {width} channels")
        length = f"{PASSES} passes over {counted(self.found.images, 'image')}, within bounds"
        length = f"{'all your steps' if self.asked_steps else length}, about {_minutes(seconds)}"
        has_end = self.minutes or self.asked_steps
        if "lr_anneal_steps" in self.given:
            yield self.choice("decay", {"lr_anneal_steps": 0} | ({} if has_end else {"max_steps": steps}), length)
        elif "lr_decay" in self.given:  # it is none: others need --lr_anneal_steps
            why = "a constant learning rate" + ("" if self.minutes else f"; {length}")
            yield self.choice("steps", {} if has_end else {"max_steps": steps}, why)
        elif self.minutes:
            ends = "the time limit or your last step ends" if self.asked_steps else "the time limit ends"
            yield self.choice("decay", {"lr_anneal_steps": -1}, f"the learning rate falls to 0 as {ends} the run")
        else:
            yield self.choice("decay", {"lr_anneal_steps": steps}, length)
        if self.is_staged and self.condition_share != self.values["condition_share"]:
            why = "in a short run the condition model needs the time: it gives the answer in one pass"
            yield self.choice("stages", {"condition_share": self.condition_share}, why)

    def augmentation_choice(self):
        """The `Choice` of augmentation and dropout for versions whose recipe leaves them open; None for others."""
        if self.values["version"] == "v2":
            return None
        return self.choice("augmentation", {"augment": "light", "dropout": 0.1}, "as the default recipe of v2 has them")

    def slices_choice(self):
        """The `Choice` of slices."""
        found = self.found
        if not found.is_volumes:
            return None
        if found.empty <= MOST_EMPTY and "slices" not in self.given:
            return Choice("slices", {}, f"all are trained on, as only {found.empty:.0%} of them have nothing marked")
        why = f"{found.empty:.0%} of slices have nothing marked; as many with as without are trained on"
        return self.choice("slices", {"slices": "balanced"}, why)

    def orientation_choice(self):
        """A note on the orientation, which no plan can know."""
        if "orientation" in self.given:
            return self.choice("orientation", {"orientation": self.found.orientation}, "of the images")
        why = f"{self.found.orientation}, by the loader; --orientation any lets augmentation turn images without a top"
        return Choice("orientation", {}, why)

    def validation_choice(self, candidate, view, steps, seconds, step):
        """The `Choice` of the interval and the cases of validations, which must not eat the run's time; None for a run
        that the user leaves without."""
        set_here = {"sample_interval", "val_cases"} & self.given
        interval = self.values["sample_interval"] if "sample_interval" in self.given else 0
        if "sample_interval" in self.given and not interval:
            return None
        long = not 0 < self.minutes <= SHORT_MINUTES
        count = VALIDATIONS_LONG if long else VALIDATIONS
        count = -(-steps // interval) if interval else min(count, steps)
        windows = 1
        if view == "crop":
            windows = len(windows_of(self.found.sides[1], candidate.image_size, 0.5))
        one_pass = step / (3 * self.batch) * windows  # a backward pass takes twice as long
        orientation = self.values["orientation"] if "orientation" in self.given else self.found.orientation
        # A plain U-Net and images in tiles have no test-time augmentation.
        has_views = view == "whole" and self.values["version"] != "unet" and orientation in VIEWS
        views = VIEWS[orientation] if has_views else 1
        members = 0
        if self.values["version"] != "unet":
            members = 2 * MEMBERS * STEPS * DENOISING  # and those of a zeroed head, see `Validation`
        each = one_pass * (count * views + members)
        cases = min(MOST_VALIDATED, int(VALIDATION_SHARE * seconds // each))
        if not cases and not set_here:
            why = f"none, as one case would take {each / seconds:.0%} of the time; last.pt is then sampled"
            return self.choice("validation", {"sample_interval": 0}, why)
        cases = self.values["val_cases"] if "val_cases" in self.given else max(cases, 1)
        why = f"{counted(count, 'validation')} in the run, in about {cases * each / seconds:.0%} of its time"
        return self.choice("validation", {"sample_interval": max(1, -(-steps // count)), "val_cases": cases}, why)


def short_lines(plan):
    """Lines on a `Plan` for a run that follows it."""
    return [f"plan: {choice.line}" for choice in plan.choices if choice.values] + [f"plan: {plan.expectation}"]


def _minutes(seconds):
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} s"
