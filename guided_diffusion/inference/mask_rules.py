"""What turns the answer's probability into its mask, by the flags and by what was fitted for the checkpoint."""

from dataclasses import replace

from ..config.values import numbers
from ..io.texts import shown
from ..runtime.errors import UserError
from .cleanup import CLEANING_FLAGS, rules_of

HALF = 0.5
GUARANTEED = "guaranteed"  # of --threshold: the one that --fit_threshold found
# Of a manifest's settings: what decides the probability, and so what a fitted threshold holds for.
DECISIVE = (
    *("num_ensemble", "weights", "image_size", "tile", "sampler", "timesteps", "solver_order", "dynamic_threshold"),
    *("symmetric", "scales", "published", "clip_denoised", "shares"),
)


def with_mask_rules(plan, sample, checkpoint, image_size):
    """The `SamplingPlan` with the thresholds and the clean-up that `SampleOptions` ask for.

    checkpoint: whose fits "auto" and "guaranteed" take; of several checkpoints the first, and no fit holds. image_size:
    of the network's input. Raises `UserError` for flags that contradict one another, and for a guarantee that does not
    hold.
    """
    classes = checkpoint.classes
    fits = {} if plan.shares else checkpoint.config.get("masks", {})
    if sample.threshold == GUARANTEED:
        plan = _guaranteed(plan, sample, fits.get("threshold"), image_size)
        rules = rules_of(sample, classes)
        removing = [name for name in CLEANING_FLAGS[1:] if any(getattr(rule, name) for rule in rules)]
        if removing:
            raise UserError(f"--{removing[0]}: removes pixels, so --threshold guaranteed would not hold; leave one out")
        return replace(plan, cleanup=rules)
    values = numbers("threshold", sample.threshold, float)
    if len(values) not in (1, len(classes)) or not all(0 < value < 1 for value in values):
        raise UserError(
            f"--threshold {shown(sample.threshold)}: must be {GUARANTEED}, or a number between 0 and 1, or one for "
            "each class"
        )
    if set(values) != {HALF}:
        plan = _cut_at(plan, sample, classes, values * (len(classes) if len(values) == 1 else 1))
    return replace(plan, cleanup=rules_of(sample, classes, fits.get("cleanup")))


def _cut_at(plan, sample, classes, values):
    """The plan with these thresholds of the probability, which then is what is cut rather than votes or STAPLE's."""
    flag = f"--threshold {sample.threshold}"
    if classes.is_exclusive and len(classes) > 1:
        raise UserError(
            f"{flag}: of classes that exclude one another the most probable one wins, whatever the threshold; leave it "
            "out"
        )
    if sample.fuse not in ("auto", "mean"):
        raise UserError(f"{flag}: cuts the mean probability; leave out --fuse {sample.fuse}")
    return replace(plan, fuse="mean", threshold=tuple(values))


def _guaranteed(plan, sample, fitted, image_size):
    flag = f"--threshold {GUARANTEED}"
    if plan.shares:
        raise UserError(f"{flag}: was fitted for one checkpoint alone; name one with --model_path")
    if not fitted:
        raise UserError(
            f"{flag}: the checkpoint has none; fit it on validation cases by --fit_threshold of the evaluation"
        )
    if sample.fuse not in ("auto", "mean"):
        raise UserError(f"{flag}: cuts the mean probability; leave out --fuse {sample.fuse}")
    now = decisive_settings(plan, sample, image_size)
    for name in DECISIVE:
        if fitted["settings"].get(name) != now[name]:
            raise UserError(
                f"{flag}: was fitted for {name} {shown(fitted['settings'].get(name))}, and now it is {now[name]}; "
                "sample as before, or fit it anew"
            )
    return replace(plan, fuse="mean", threshold=tuple(fitted["values"]), max_misses=fitted["max_misses"])


def with_larger_regions(masks, classes):
    """Masks bool [K, H, W] of regions, where a pixel of a region also is one of each region that holds it."""
    values = list(map(set, classes.values))
    result = masks.copy()
    for k, own in enumerate(values):
        for other, larger in enumerate(values):
            if own < larger:
                result[other] |= masks[k]
    return result


def holds_every_union(classes):
    """Whether a label map can hold any thresholded masks of these classes: of one, or of regions within one another."""
    by_size = sorted(map(set, classes.values), key=len)
    return len(classes) == 1 or all(one < other for one, other in zip(by_size, by_size[1:], strict=False))


def tiling(sample):
    """The value of "tile" in a manifest."""
    return f"with overlap {sample.tile_overlap:g}" if sample.tile else False


def decisive_settings(plan, sample, image_size):
    """The settings `DECISIVE` of a sampling run, as its manifest has them."""
    own = plan.settings() | {"num_ensemble": sample.num_ensemble, "weights": sample.weights}
    own |= {"image_size": image_size, "tile": tiling(sample)}
    return {name: own[name] for name in DECISIVE}
