"""The summary of an evaluation as tables for the console."""

import math

from ..data.classes import MEAN
from ..runtime.console import counted, text_table
from .controls import MEMBERS_DICE
from .diversity import LEVEL_SETS
from .ensemble_size import format_sizes
from .metrics import metric_names
from .summary import EMPTY_LABELS, LEFT_OUT
from .uncertainty import SCORES

HEAD = ("", "mean", "95 % interval", "median", "std", "n")
PER_CLASS = {  # the columns of the classes' table
    "dice": "dice",
    "sample_dice": "one member's",
    "log_loss_per_area": "log loss",
    "expected_volume_ratio": "expected/true",
    "iou": "iou",
    "sensitivity": "sensitivity",
    "precision": "precision",
    "hd95": "hd95",
}
LEADING = (  # first in the table
    *("dice", "sample_dice", "raters_agreement"),
    *("log_loss_per_area", "expected_volume_ratio", "sample_volume_ratio"),
)
LAG = 0.1  # of one member's Dice behind the fused mask's, beyond which a line warns
SETS = {  # prefixes of the figures of sets of masks that stand beside the members'
    "control_levels_": "level sets",
    "beyond_levels_": "members - level sets",
    "control_copula_": "Gaussian copula",
    "beyond_copula_": "members - Gaussian copula",
    "reader_": "held-out reader",
    "majority_": "raters' majority",
}
OF_SETS = ("ged2_unbiased", "matched_iou")
FURTHER = ("iou", "sensitivity", "precision", "hd95", "assd", "nsd", "volume_error", "lesion_f1")
FIGURE_LABELS = {
    "log_loss_per_area": "log loss per lesion pixel",
    "brier_per_area": "Brier score per lesion pixel",
    "brier": "Brier score",
    "expected_volume_ratio": "expected / true volume",
    "coarse_volume_ratio": "coarse / true volume",
    "mask_volume_ratio": "mask / true volume",
    "sample_volume_ratio": "members / true volume",
    "ged2_unbiased": "GED² unbiased",
    "ged2": "GED² V-statistic",
    "ged2_floor": "GED² V-statistic of a perfect sampler",
    "matched_iou": "matched IoU",
    "sample_dice": "dice of one member",
    "raters_agreement": "dice of one rater to another",
    "rater_dice": "dice to raters",
    "collective_insight": "collective insight score",
    "agreement": "agreement of members",
    **{
        f"{whose}_{key}": f"{whose} {label}"
        for whose in ("mask", "sample")
        for key, label in (
            ("cldice", "clDice"),
            ("betti0_error", "Betti-0 error"),
            ("betti1_error", "Betti-1 error"),
            ("vi_foreground", "VI of foreground segments"),
            ("vi_background", "VI of background segments"),
        )
    },
}


def format_summary(summary):
    """The summary (see `summary.summary_of`) as text; with several classes a table of the classes comes first."""
    lines = [*_class_lines(summary), text_table(HEAD, _figure_rows(summary))]
    if summary["diversity"]["ged2_unbiased"]["n"] and len(summary["members"]) < 2:
        lines.append(f"one answer, no members: as a set of masks count {LEVEL_SETS} level sets of its probability")
    lines += _uncertainty_lines(summary["uncertainty"]) + miss_lines(summary) + member_lines(summary)
    if "ensemble_size" in summary:
        lines.append(format_sizes(summary["ensemble_size"]))
    ensemble = summary["ensemble"]
    empties = ", ".join(f"{ensemble[f'{which}_empty']} {text}" for which, text in EMPTY_LABELS.items())
    groups = f" of {counted(summary['groups'], 'group')}" if summary["groups"] else ""
    scope = " over all classes" if "classes" in summary else ""
    lines.append(f"{counted(ensemble['cases'], 'case')}{groups} ({empties}{scope})")
    lines += [f"left out: {counted(summary[key], 'case')} {text}" for key, text in LEFT_OUT.items() if summary[key]]
    if summary["unmatched_files"]:
        lines.append(f"left out: {counted(summary['unmatched_files'], 'mask file')} not named like any case")
    return "\n".join(lines)


def metric_label(name, summary):
    """A figure's name in tables, with its unit."""
    unit = summary["hd95_unit"]
    if name.startswith("nsd_"):
        return f"nsd at {name[4:]} {unit}"
    return f"{name} ({unit})" if name in ("hd95", "assd") else figure_name(name)


def figure_name(name):
    """A figure's name in tables, from its key in summary.json or its column in metrics.csv."""
    for prefix, of_whom in SETS.items():
        if name.startswith(prefix):
            return f"{of_whom}: {figure_name(name.removeprefix(prefix))}"
    if name.startswith("coarse_") and name not in FIGURE_LABELS:
        return f"coarse {figure_name(name.removeprefix('coarse_'))}"
    return FIGURE_LABELS.get(name, name.replace("_", " "))


def _class_lines(summary):
    """The table of the classes and of their `MEAN`, and the heading of the table after it; [] with a single class."""
    if "classes" not in summary:
        return []
    levels = {
        name: one["ensemble"] | one["probability"] | {"sample_dice": one["sample"]}
        for name, one in {**summary["classes"], MEAN: summary}.items()
    }
    keys = [key for key in PER_CLASS if levels[MEAN][key]["n"]]
    rows = [
        [name, *(f"{level[key]['mean']:.4f}" for key in keys), level["dice"]["n"]] for name, level in levels.items()
    ]
    return [
        text_table(["class", *(PER_CLASS[key] for key in keys), "cases"], rows),
        "all classes, each case's mean over its defined classes:",
    ]


def _figure_rows(summary):
    """The rows of the figures that decide, then of the others that fit on a screen; the files have all."""
    ensemble, diversity = summary["ensemble"], summary["diversity"]
    single = {"sample_dice": summary["sample"], "raters_agreement": diversity["raters_agreement"]}
    known = {**ensemble, **summary["probability"], **single}
    values = {name: known[name] for name in LEADING}
    values |= {f"{prefix}{figure}": diversity[f"{prefix}{figure}"] for figure in OF_SETS for prefix in ("", *SETS)}
    values |= {"rater_dice": diversity["rater_dice"]}
    labelled = {metric_label(name, summary): described for name, described in values.items() if described["n"]}
    if len(summary["raters"]) > 1:
        raters = zip(summary["rater_names"], summary["raters"], strict=True)
        labelled |= {f"  to rater {name}": described for name, described in raters}
    further = {"coarse dice": summary["coarse"], **summary.get("topology", {})}
    further |= {name: ensemble[name] for name in metric_names(summary["nsd_tolerances"]) if name.startswith(FURTHER)}
    labelled |= {metric_label(name, summary): described for name, described in further.items() if described["n"]}
    return [_statistics_row(label, described) for label, described in labelled.items() if described["n"]]


def _statistics_row(label, values):
    interval = "" if math.isnan(values["low"]) else f"[{values['low']:.4f}, {values['high']:.4f}]"
    return [label, f"{values['mean']:.4f}", interval, f"{values['median']:.4f}", f"{values['std']:.4f}", values["n"]]


def miss_lines(summary):
    """Lines on the share of missed lesion pixels, where a threshold was to limit it."""
    lines, misses = [], summary.get("misses")
    for name, one in misses["classes"].items() if misses else ():
        if one["n"]:
            of_class = f" of {name}" if len(misses["classes"]) > 1 else ""
            is_known = one.get("low") is not None and not math.isnan(one["low"])
            interval = f" [{one['low']:.4f}, {one['high']:.4f}]" if is_known else ""
            lines.append(
                f"Missed share of the lesion pixels{of_class}: {one['mean']:.4f}{interval} on average over "
                f"{counted(one['n'], 'group')}; the threshold was fitted for at most {misses['at_most']:.3g}"
            )
    return lines


def member_lines(summary):
    """A warning where one member is worse than the fused mask by more than two raters differ, or by `LAG` with one.

    Level sets say why: a probability that is unsure of a whole lesion makes any members as bad.
    """
    diversity, undefined = summary.get("diversity", {}), {"n": 0}
    parts = (summary["ensemble"].get("dice", undefined), summary["sample"])
    levels, lag, agreement = (diversity.get(key, undefined) for key in (*MEMBERS_DICE, "raters_agreement"))
    if len(summary.get("members", ())) < 2 or not all(one["n"] for one in (*parts, levels, lag)):
        return []
    fused, member = (one["mean"] for one in parts)
    if fused - member <= (max(1 - agreement["mean"], LAG) if agreement["n"] else LAG):
        return []
    if lag["mean"] < -LAG / 2:
        cause = "more: the diffusion is undertrained, so train longer"
    else:
        cause = "no more: the network is unsure, which more training or more data may cure"
    return [
        f"warning: members are much worse than their fused mask: Dice {member:.3f} and {fused:.3f}. Level sets of the "
        f"same probability, {levels['mean']:.3f}, have {cause}; meanwhile use the fused mask"
    ]


def _uncertainty_lines(uncertainty):
    lines = []
    for name in SCORES:
        score = uncertainty[name]
        if score["judged"] > 1:
            lines.append(
                f"{name.replace('_', ' ')} and error: rank correlation {score['spearman']:.3f}, area under retention "
                f"{score['area']:.4f} (random order {score['random']:.4f}, best order {score['oracle']:.4f})"
            )
    if not math.isnan(uncertainty["volume_coverage"]):
        inside, cases = uncertainty["volume_inside"], counted(uncertainty["volume_cases"], "case")
        lines.append(f"true volume inside the 5-95 % range of the members' volumes in {inside} of {cases}")
    return lines
