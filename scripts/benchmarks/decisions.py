"""One mask from an ensemble, decided in several ways: the Dice of each, and its difference to the cut at 0.5.

The results folders need members (--num_ensemble N --save_samples True in sampling). Decisions:

half                 the members' mean probability above 0.5
expected_dice        the level set of that probability whose mean Dice with the members is largest
expected_dice_alone  the level set of largest expected Dice by the probability alone, 2 sum_M p / (|M| + sum p)
medoid               the member whose mean Dice with the others is largest
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accuracy import append

from guided_diffusion.config.command_line import parse
from guided_diffusion.config.fields import option
from guided_diffusion.data.cases import group_cases
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.data.splits import given_split
from guided_diffusion.data.truth import majority, raters_of
from guided_diffusion.evaluation.case_figures import read_prediction
from guided_diffusion.evaluation.diversity import level_sets, pair_dice, shared_pixels
from guided_diffusion.evaluation.evaluate import predictions_of
from guided_diffusion.evaluation.metrics import overlap
from guided_diffusion.evaluation.statistics import Resampling, describe_values
from guided_diffusion.evaluation.topology import cl_dice, skeleton
from guided_diffusion.inference.manifest import read_manifest
from guided_diffusion.runtime.console import console
from guided_diffusion.runtime.errors import UserError, run_script

LEVELS = 32  # thresholds that are tried
DECISIONS = ("half", "expected_dice", "expected_dice_alone", "medoid")


@dataclass
class DecisionOptions:
    """The decisions."""

    pred_dir: str = option("", "results folders with members, separated by commas, such as one for each seed")
    cldice: bool = option(False, "also score masks by clDice, for tubes such as vessels")
    record: str = option("", "file that gets one JSON line for the table; empty: none")


def main(argv=None):
    """Decide every case of the folders in every way, and print the table."""
    (options,), _ = parse(__doc__, [DecisionOptions], argv)
    folders = [folder for folder in options.pred_dir.split(",") if folder]
    if not folders:
        raise UserError("--pred_dir: is needed; it names results folders with members")
    groups, scores = [], []
    for folder in folders:
        for group, figures in scored_cases(folder, options.cldice):
            groups.append(group)
            scores.append(figures)
    table = tabulate(groups, scores)
    if options.record:
        append(
            options.record,
            {"kind": "decisions", "folders": [Path(folder).parent.name for folder in folders], "figures": table},
        )
    for figure, rows in table.items():
        console().info(f"{figure:>8}{'mean':>9}   difference to half, 95 % interval over patients")
        for name, row in rows.items():
            console().info(
                f"  {name:20}{row['mean']:7.4f}   {row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
            )


def scored_cases(folder, with_cldice):
    """Yield (group, {(figure, decision): value}) of each case of a results folder.

    Raises `UserError` where the folder has no members.
    """
    manifest = read_manifest(folder)
    data = manifest.get("data", {})
    dataset = build_dataset(data["data_name"], data["data_dir"], image_size=1, split=given_split(data["split"]))
    units = group_cases(dataset.cases)
    predictions = predictions_of(folder, dataset, units)
    for unit in units:
        raters = raters_of(dataset, unit.cases, 0)
        if raters is None or predictions.mask(unit.name, unit.is_volume) is None:
            continue
        answer, truth = read_prediction(predictions, unit, raters.shape[1:]), majority(raters)
        if len(answer.members) < 2:
            raise UserError(f"{folder}: {unit.name} has no members; sample with --num_ensemble N --save_samples True")
        masks = decide(np.stack(answer.members), answer.probability)
        figures = {("dice", name): overlap(mask, truth)["dice"] for name, mask in masks.items()}
        if with_cldice:
            true = skeleton(truth)
            figures |= {("cldice", name): cl_dice(mask, skeleton(mask), truth, true) for name, mask in masks.items()}
        yield unit.cases[0].group or unit.name, figures


def decide(members, probability):
    """{name in `DECISIONS`: bool [...]} from members bool [E, ...] and their mean probability [...] in [0, 1]."""
    levels, count = level_sets(probability, LEVELS), len(members)
    dice = pair_dice(shared_pixels([*members, *levels]))
    total = probability.sum()
    alone = [2 * probability[level].sum() / max(level.sum() + total, 1e-9) for level in levels]
    return {
        "half": probability > 0.5,
        "expected_dice": levels[int(dice[count:, :count].mean(axis=1).argmax())],
        "expected_dice_alone": levels[int(np.argmax(alone))],
        "medoid": members[int(dice[:count, :count].sum(axis=1).argmax())],
    }


def tabulate(groups, scores):
    """{figure: {decision: {"mean", "difference", "low", "high"}}}, differences to "half", paired by case."""
    resampling, table = Resampling(groups), {}
    for figure in dict.fromkeys(figure for figure, _ in scores[0]):
        columns = {name: np.array([one[figure, name] for one in scores]) for name in DECISIONS}
        for name, values in columns.items():
            found = describe_values(values - columns["half"], resampling)
            row = {"mean": describe_values(values)["mean"], "difference": found["mean"]}
            table.setdefault(figure, {})[name] = row | {"low": found["low"], "high": found["high"]}
    return table


if __name__ == "__main__":
    run_script(main)
