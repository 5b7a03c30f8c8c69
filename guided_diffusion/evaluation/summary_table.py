"""The summary of an evaluation as tables for the console."""

import math

from ..runtime.console import counted, text_table
from .ensemble_size import format_sizes
from .metrics import metric_names
from .summary import CALIBRATION, EMPTY_LABELS, LEFT_OUT
from .uncertainty import SCORES

HEAD = ("", "mean", "95 % interval", "median", "std", "n")
PER_CLASS = ("dice", "iou", "sensitivity", "precision", "hd95", "assd", "lesion_f1")


def format_summary(summary):
    """The summary (see `summary.summary_of`) as text; with several classes a table of the classes comes first."""
    lines = [*_class_lines(summary), text_table(HEAD, _figure_rows(summary))]
    lines += _uncertainty_lines(summary["uncertainty"]) + _member_lines(summary["members"])
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
    """A metric's name in tables, with its unit."""
    unit = summary["hd95_unit"]
    if name.startswith("nsd_"):
        return f"nsd at {name[4:]} {unit}"
    return f"{name} ({unit})" if name in ("hd95", "assd") else name.replace("_", " ")


def _class_lines(summary):
    """The table of the classes' means, and the heading of the table after it; [] with a single class."""
    if "classes" not in summary:
        return []
    names = [name for name in metric_names(summary["nsd_tolerances"]) if name in PER_CLASS or name.startswith("nsd_")]
    rows = [
        [name, *(f"{one['ensemble'][metric]['mean']:.4f}" for metric in names), one["ensemble"]["dice"]["n"]]
        for name, one in summary["classes"].items()
    ]
    return [
        text_table(["class", *names, "cases"], rows),
        "all classes, each case's mean over its defined classes:",
    ]


def _figure_rows(summary):
    names = metric_names(summary["nsd_tolerances"])
    rows = [_statistics_row(metric_label(name, summary), summary["ensemble"][name]) for name in names]
    values = {"sample dice": summary["sample"], "sample iou": summary["sample_iou"]}
    values |= {"coarse dice": summary["coarse"], "coarse iou": summary["coarse_iou"]}
    values |= {name.replace("_", " "): described for name, described in summary["diversity"].items()}
    if len(summary["raters"]) > 1:
        raters = zip(summary["rater_names"], summary["raters"], strict=True)
        values |= {f"  to rater {name}": described for name, described in raters}
    values |= {name.replace("_", " "): summary["uncertainty"][name] for name in SCORES}
    rows += [_statistics_row(label, described) for label, described in values.items() if described["n"]]
    # Calibration is computed over all pixels together, so it has no median.
    figures = summary["calibration"]
    return rows + [[label, f"{figures[key]:.4f}"] for key, label in CALIBRATION.items() if not math.isnan(figures[key])]


def _statistics_row(label, values):
    interval = "" if math.isnan(values["low"]) else f"[{values['low']:.4f}, {values['high']:.4f}]"
    return [label, f"{values['mean']:.4f}", interval, f"{values['median']:.4f}", f"{values['std']:.4f}", values["n"]]


def _member_lines(members):
    if len(members) < 2:
        return []
    names = ("dice", "staple_sensitivity", "staple_specificity")
    rows = [[f"  {e}", *(f"{one[name]:.4f}" for name in names)] for e, one in enumerate(members)]
    return [text_table(["member", "dice", "sensitivity by STAPLE", "specificity by STAPLE"], rows)]


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
        lines.append(f"true volume within the members' interval: {uncertainty['volume_coverage']:.1%} of cases")
    return lines
