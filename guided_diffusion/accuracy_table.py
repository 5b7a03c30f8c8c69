"""Tables of accuracy runs: mean and spread over seeds, and paired differences to the baselines with their intervals."""

from collections import defaultdict

import numpy as np

from .files import atomic_path
from .statistics import bootstrap_interval

BASELINES = ("unet", "unet_looks", "v2")
COLUMNS = {  # figures of a run's line and their headings
    "dice": "Dice",
    "iou": "IoU",
    "sample_dice": "one sample",
    "sample_iou": "its IoU",
    "coarse_dice": "coarse",
    "coarse_iou": "its IoU",
    "ece_band": "ECE band",
    "ece": "ECE",
    "brier_band": "Brier band",
    "ged2": "GED²",
    "matched_iou": "matched IoU",
    "rater_dice": "Dice to each rater",
}
PAIRED = {"dice": "Dice", "sample_dice": "one sample", "ged2": "GED²", "matched_iou": "matched IoU"}


def write_tables(lines, path):
    """Write the Markdown tables of a record's lines (dicts) to `path`, whole or not at all. Returns the text."""
    groups = defaultdict(list)
    for line in lines:
        if line["kind"] == "run":
            groups[line["set"], line["split"], line["minutes"], line["machine"]].append(line)
    text = "\n\n".join(_section(key, runs) for key, runs in sorted(groups.items())) or "No runs yet."
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return text


def _section(key, runs):
    name, split, minutes, machine = key
    contenders = defaultdict(list)
    for run in runs:
        contenders[run["contender"], run["flags"]].append(run)
    shown = [c for c in COLUMNS if any(run["figures"].get(c) is not None for run in runs)]
    heading = ["contender", "steps", "seeds", *(COLUMNS[c] for c in shown), "s / case"]
    table = [heading, ["---"] * len(heading)]
    for (contender, _), own in contenders.items():
        cells = [mean_and_spread([run["figures"].get(c) for run in own]) for c in shown]
        steps = ", ".join(sorted({str(run["steps"]) for run in own}))
        seconds = mean_and_spread([run["seconds_per_case"] for run in own], digits=2)
        table.append([contender, steps, str(len(own)), *cells, seconds])
    parts = [f"### {name}, {split} split, {minutes:g} minutes of training ({machine})", _markdown(table)]
    paired = [_paired_table(contenders, baseline) for baseline in BASELINES]
    return "\n\n".join(parts + [table for table in paired if table])


def mean_and_spread(values, digits=3):
    """The mean of one value a seed and, of several, their smallest and largest; a dash for none."""
    values = [value for value in values if value is not None]
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _paired_table(contenders, baseline):
    """Differences to a baseline's runs of the same seeds, over cases, with 95 % intervals over patients."""
    base = {run["seed"]: run for (name, _), own in contenders.items() if name == baseline for run in own}
    rows = []
    for (name, _), own in contenders.items():
        pairs = [(run, base[run["seed"]]) for run in own if name != baseline and run["seed"] in base]
        cells = [difference_cell(pairs, key) for key in PAIRED]
        if any(cell != "–" for cell in cells):
            rows.append([name, *cells])
    if not rows:
        return ""
    heading = ["contender", *(f"{label} - {baseline}'s [95 %]" for label in PAIRED.values())]
    columns = [column for column in zip(heading, *rows, strict=True) if set(column[1:]) != {"–"}]  # what some have
    heading, *rows = (list(row) for row in zip(*columns, strict=True))
    return _markdown([heading, ["---"] * len(heading), *rows])


def difference_cell(pairs, key):
    """The mean paired difference of a figure and its interval as text, or a dash.

    pairs: (run, baseline's run) of one seed each. A patient's difference is the mean over its cases and the seeds;
    patients are drawn with replacement.
    """
    by_group = defaultdict(list)
    for run, other in pairs:
        if key in run["cases"] and key in other["cases"]:
            for group, a, b in zip(run["groups"], run["cases"][key], other["cases"][key], strict=True):
                if a is not None and b is not None:
                    by_group[group].append(a - b)
    if not by_group:
        return "–"
    differences = [float(np.mean(values)) for values in by_group.values()]
    low, high = bootstrap_interval(differences)
    return f"{np.mean(differences):+.4f} [{low:+.4f}, {high:+.4f}]"


def _markdown(rows):
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
