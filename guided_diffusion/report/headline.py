"""What a reader of a report needs first: one line of five figures, and a table with a row for each class."""

from html import escape

import numpy as np

from ..data.classes import MEAN
from .figures import LEAST_PATIENTS, figure_label, interval_text, patients_of
from .page import swatch

RATIOS = ("expected_volume_ratio", "mask_volume_ratio", "hd95")  # of which the first that is defined leads
OF_RATERS = ("ged2_unbiased",)  # with several raters; with one it is the energy score
OF_PROBABILITY = ("log_loss_per_area", "iou", "sensitivity")
OF_CLASSES = ("dice", "sample_dice", "sensitivity", "precision", "hd95")  # and the ratio of sizes


def headline(summary, cases, size):
    """The line of figures: a list of (label, value, note), all text.

    summary: of `read_summary`, or {} without truth; then the figures are those of the cases. cases: dicts with the
    "scores" of each case and the "share" of its image in the mask. size: "area" or "volume".
    """
    if not summary:
        return _without_truth(cases, size)
    ensemble, described = summary["ensemble"], _described(summary)
    notes = [f"of {summary['groups']} patients"] if summary.get("groups") else []
    if patients_of(summary) < LEAST_PATIENTS:
        notes.append(f"no intervals below {LEAST_PATIENTS} patients")
    line = [("Cases", str(ensemble["cases"]), "; ".join(notes))]
    sharpness = (OF_RATERS if "rater_dice" in described else ()) + OF_PROBABILITY
    for choice in (("dice",), RATIOS, sharpness):
        key = next((key for key in choice if key in described), None)
        if key is not None:
            interval = interval_text(described[key], 3)
            value = f"{described[key]['mean']:.3f}"
            label = figure_label(key, size, summary.get("hd95_unit", ""))
            line.append((label, value, f"95 %: {interval}" if interval else ""))
    return [*line, ("Empty masks", *_empty_masks(ensemble, len(summary.get("classes") or {}) > 1))]


def _described(level):
    """The defined statistics of one level of a summary, by key."""
    own = {"sample_dice": level.get("sample")}
    parts = (level["ensemble"], own, level.get("probability", {}), level.get("diversity", {}))
    return {key: one for part in parts for key, one in part.items() if isinstance(one, dict) and one["n"]}


def _empty_masks(ensemble, several_classes):
    """(value, note) of a level's number of empty masks."""
    missed, right, false = (_empty_count(ensemble, which) for which in ("prediction", "both", "truth"))
    value = f"{missed + right}" + ("" if several_classes else f" of {ensemble['cases']}")
    note = f"{missed} missed, {right} rightly empty; {false} false alarms"
    return value, note + (", over all classes" if several_classes else "")


def _empty_count(ensemble, which):
    """A number of empty masks; 0 where the file has none, or something else in its place."""
    count = ensemble.get(f"{which}_empty")
    return count if isinstance(count, int) else 0


def _without_truth(cases, size):
    line = [("Cases", str(len(cases)), "without truth")]
    expected, agreement = (
        [case["scores"][key] for case in cases if key in case["scores"]] for key in ("expected_dice", "agreement")
    )
    if expected:
        line.append((figure_label("expected_dice"), f"{np.mean(expected):.3f}", "if the probability is calibrated"))
    if agreement:
        line.append((figure_label("agreement"), f"{np.mean(agreement):.3f}", "mean Dice of two members"))
    elif expected:
        line.append(("Lowest expected Dice", f"{min(expected):.3f}", "the first case below"))
    shares = [case["share"] for case in cases]
    if shares:
        note = f"of the {'volume' if size == 'volume' else 'image'}, median over cases"
        line.append((f"Mask's {size}", f"{100 * np.median(shares):.2g} %", note))
    return [*line, ("Empty masks", f"{sum(not share for share in shares)} of {len(cases)}", "")]


def class_table(summary, legend, size):
    """The main figures of each class and of their mean as an HTML table; "" with a single class.

    legend: [name, colour] of each. The mean is each case's over the classes where the figure is defined.
    """
    classes = summary.get("classes") or {}
    if len(classes) < 2:
        return ""
    levels = {**classes, MEAN: summary}
    colours, described = dict(map(tuple, legend)), {name: _described(level) for name, level in levels.items()}
    ratio = next((key for key in RATIOS if any(key in one for one in described.values())), "hd95")
    keys = [
        key
        for key in dict.fromkeys((OF_CLASSES[0], ratio, *OF_CLASSES[1:]))
        if any(key in one for one in described.values())
    ]
    labels = [figure_label(key, size, summary.get("hd95_unit", "")) for key in keys]
    rows = []
    for name, level in levels.items():
        cells = [_class_cell(described[name].get(key)) for key in keys]
        cells += [str(_empty_count(level["ensemble"], which)) for which in ("prediction", "truth")]
        mark = swatch(colours[name]) if name in colours else ""
        rows.append(
            f'<tr><th scope="row">{mark}{escape(name)}</th><td>{level["ensemble"]["cases"]}</td>'
            f"{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        )
    heads = "".join(
        f'<th scope="col">{escape(head)}</th>' for head in ("Class", "Cases", *labels, "Missed", "False alarms")
    )
    return (
        f'<section aria-labelledby="classes"><h2 id="classes">Classes</h2><div class="scroll"><table class="figures">'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _class_cell(values):
    if values is None:
        return "–"
    interval = interval_text(values, 3)
    return f"{values['mean']:.3f}" + (f" ({interval})" if interval else "")
