"""What sampling prints: how the masks will be made, what the data are, warnings, and what could not be sampled."""

import sys

from ..data.accounting import warn_of_left_over
from ..data.cases import group_cases
from ..data.compatibility import leakage_warning, selection_warning
from ..data.truth import raters_of
from ..inference.cleanup import CLEANING_FLAGS, described_rules
from ..io.pictures import turning_tag
from ..io.storage import is_remote
from ..runtime.console import console, counted, listed
from ..runtime.errors import UserError

DRAWING_FLAGS = (  # without effect where no members are drawn
    *("diffusion_steps", "sampler", "use_ddim", "dpm_solver", "solver_order", "timestep_respacing", "clip_denoised"),
    *("fuse", "seed", "compile"),
)


def print_sampling_plan(settings, checkpoints, sampler):
    """Print how the masks will be made, which of the given flags have no effect, and warnings.

    settings: `Settings`. checkpoints: by their files. sampler: the `EnsembleSampler`.
    """
    if settings.model.version == "unet":
        augmented = " except --symmetries and --scales" if sampler.plan.symmetric or sampler.plan.scales else ""
        console().info(f"a plain U-Net has one answer: the flags of sampling have no effect{augmented}")
    if not settings.sample.num_ensemble:
        console().info(one_pass_line(settings, several=bool(sampler.others)))
    for line in mask_lines(sampler.plan, next(iter(checkpoints.values())), settings.given):
        console().info(line)
    if sampler.others:
        console().info(
            f"{len(checkpoints)} checkpoints, which give {' + '.join(map(str, sampler.shares))} members: the mean of "
            "their probabilities is the answer"
        )
    for one in checkpoints.values():
        if not one.has_learned_diffusion and settings.sample.num_ensemble:
            console().warning(
                f"warning: the checkpoint, of step {one.step}, is from training's first stage, in which the condition "
                "model learns alone: members are its probabilities drawn pixel by pixel. Train on, end the stage "
                "sooner (--resume_checkpoint auto --max_steps N), name a later checkpoint such as last.pt, or leave "
                "out --num_ensemble for its own answer"
            )


def one_pass_line(settings, several=False):
    """The line that says that the diffusion is not used, which of the given flags have no effect, and how to draw.

    several: whether several checkpoints answer, whose answers are fused and saved as members are.
    """
    flags = [name for name in DRAWING_FLAGS if not (several and name == "fuse")]
    unused = [f"--{name}" for name in flags if name in settings.given]
    if settings.sample.save_samples and not several:
        unused.append("--save_samples (but for the coarse mask)")
    without = f"; {', '.join(unused)} {'has' if len(unused) == 1 else 'have'} no effect" if unused else ""
    return (
        "the condition model answers in one pass, the diffusion is not used: to draw members by it, add "
        f"--num_ensemble 5{without}"
    )


def mask_lines(plan, checkpoint, given):
    """Lines on the clean-up and the threshold of the masks. given: the names of the given flags."""
    lines, fits = [], checkpoint.config.get("masks", {})
    if plan.cleanup:
        line = f"clean-up of the masks: {described_rules(plan.cleanup, checkpoint.classes)}"
        if "cleanup" in fits and not given.intersection(CLEANING_FLAGS):
            cases = counted(fits["cleanup"]["cases"], "case")
            line += f", chosen on {cases}; without it: --fill_holes False --keep_largest False --min_size 0"
        lines.append(line)
    if plan.max_misses and "cleanup" in fits and not plan.cleanup:
        lines.append("the clean-up that was chosen for the checkpoint is not applied: the threshold's masks stay whole")
    if plan.max_misses:
        values = ", ".join(f"{value:.4g}" for value in plan.threshold)
        lines.append(
            f"threshold {values}: at most {plan.max_misses:.3g} of a patient's lesion pixels are missed on average, "
            "where the cases are like those on which it was fitted"
        )
    return lines


def print_sampling_summary(run, waiting, processes):
    """Print the number of cases to sample, the data's layout, and warnings."""
    dataset, units = run.dataset, run.units
    everything = len(group_cases(dataset.cases))
    asked_for = "" if len(units) == everything else f", of which --num_samples takes the first {len(units)}"
    done = len(units) - len(waiting)
    console().info(f"{counted(everything, 'case')} of {dataset.data_dir}{asked_for}; {done} finished already")
    if dataset.layout:
        console().info(f"layout: {dataset.layout}")
    trained = [one.config["data"] for one in run.checkpoints.values()]
    leaks = dict.fromkeys(leakage_warning(dataset, units, data) for data in trained)
    turned = turned_line(waiting) if processes.is_first else ""  # it opens every image, and only the first prints
    for line in (*dataset.notes, turned, selection_warning(dataset), *leaks):
        if line:
            console().warning(line)
    if processes.is_first:
        warn_of_left_over(dataset)
    if waiting and run.draws_members and not run.settings.sample.save_samples and processes.is_first:
        warn_of_raters(dataset, waiting[0].cases[:1])


def turned_line(units):
    """A line on the images that an EXIF tag turns, over which the results lie as they are shown; "" without any."""
    turned = [unit.name for unit in units if not unit.is_volume and turning_tag(unit.cases[0].images[0])[0] != 1]
    if not turned:
        return ""
    return (
        f"{counted(len(turned), 'image')} with an EXIF tag that turns or mirrors them ({listed(turned)}): they are "
        "read, and their masks written, as they are shown, not as they are stored"
    )


def warn_of_raters(dataset, cases):
    """Warn if several raters marked these cases and the members, needed to compare with them, are not saved."""
    try:
        raters = raters_of(dataset, cases)
    except (UserError, OSError):  # sampling will report it
        return
    if raters is not None and len(raters) > 1:
        console().warning(
            "warning: several raters: GED2, matched IoU and collective insight compare the members with them; for "
            "these figures add --save_samples True"
        )


def warn_of_outdated(run, folder, waiting):
    """Warn of finished cases whose images changed since: their masks are kept."""
    if is_remote(run.settings.sample.out_dir) or is_remote(run.settings.data.data_dir):
        return  # fetched files have the time of their copying
    names = {unit.name for unit in waiting}
    finished = [unit for unit in run.units if unit.name not in names]
    outdated = [u.name for u in finished if folder.is_outdated(u.name, u.is_volume, u.cases[0].images)]
    if outdated:
        has = "has an image" if len(outdated) == 1 else "have images"
        console().warning(
            f"warning: {counted(len(outdated), 'finished case')}, as {outdated[0]}, {has} newer than the mask: where "
            "it was changed, remove the mask, and the case is sampled again"
        )


def warn_if_empty(empty, count, step):
    """Warn of empty masks, a sign that training may have been too short."""
    if empty:
        console().warning(
            f"warning: {empty} of {counted(count, 'mask')} {'is' if empty == 1 else 'are'} empty. The checkpoint was "
            f"trained for {counted(step, 'step')}: if that is few, train on; else compare the overlays with the images "
            "that it was trained on"
        )


def print_unsampled(left_out, count):
    """Print on stderr which of `count` cases have no mask, if there are any. left_out: their names."""
    if left_out:
        has, them = ("has", "it") if len(left_out) == 1 else ("have", "them")
        print(
            f"error: {len(left_out)} of {counted(count, 'case')} could not be sampled and {has} no mask: "
            f"{listed(left_out)}; repair {them}, then the same command samples {them}",
            file=sys.stderr,
        )
