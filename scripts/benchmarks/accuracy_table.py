"""Tables of accuracy runs: mean and spread over seeds, and paired differences to the baselines with their intervals."""

from collections import defaultdict

import numpy as np

from guided_diffusion.io.files import atomic_path

BASELINES = ("unet_mean", "v2")
FIRST = "auto"  # among contenders as a user meets them
USER_ORDER = (FIRST, "auto_members", "auto_unet", "nnunet", "nnunet_mirrored")
FOREIGN = "nnU-Net"  # begins the version of runs that are not ours
RESAMPLES = 10_000  # of patients and seeds, for an interval
COLUMNS = {  # figures of a run's line and their headings
    "dice": "Dice",
    "sample_dice": "one sample",
    "log_loss_per_area": "log loss / lesion px",
    "brier_per_area": "Brier / lesion px",
    "volume": "volume",
    "sample_volume": "members' volume",
    "ece": "ECE",
    "ged2_unbiased": "GED² unbiased",
    "ged2": "GED² V",
    "matched_iou": "matched IoU",
    "copula_ged2": "copula's GED²",
    "copula_matched_iou": "copula's matched IoU",
    "reader_dice": "a reader's Dice",
    "reader_ged2": "a reader's GED²",
    "majority_ged2": "the majority's GED²",
    "mask_cldice": "clDice",
    "sample_cldice": "one sample's",
    "mask_betti0": "Betti-0 error",
    "sample_betti0": "one sample's",
    "mask_betti1": "Betti-1 error",
    "sample_betti1": "one sample's",
    "mask_vi": "VI",
    "sample_vi": "one sample's",
}
PAIRED = (  # heading, the figure of the run, that of the baseline
    ("Dice", "dice", "dice"),
    ("log loss", "log_loss", "log_loss"),
    ("GED²", "ged2_unbiased", "ged2_unbiased"),
    ("GED² to the copula", "ged2_unbiased", "copula_ged2"),
    ("matched IoU", "matched_iou", "matched_iou"),
    ("matched IoU to the copula", "matched_iou", "copula_matched_iou"),
    ("clDice", "mask_cldice", "mask_cldice"),
    ("one sample's clDice", "sample_cldice", "mask_cldice"),
    ("one sample's Dice", "sample_dice", "dice"),
)


def write_tables(lines, path):
    """Write the Markdown tables of a record's lines (dicts) to `path`, whole or not at all. Returns the text."""
    groups = defaultdict(list)
    for line in lines:
        if line["kind"] == "run":
            groups[line["set"], line["split"], budget_of(line), line["machine"]].append(line)
    sections = [_section(key, runs) for key, runs in sorted(groups.items())]
    text = "\n\n".join(sections + user_sections(lines)) or "No runs yet."
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return text


def budget_of(line):
    """What a run was given: the same minutes, or where its line has none the same steps, as all of its table."""
    return f"{line['steps']} steps" if line["minutes"] is None else f"{line['minutes']:g} minutes"


def _section(key, runs):
    name, split, budget, machine = key
    contenders = defaultdict(list)
    for run in runs:
        contenders[run["contender"], run["flags"]].append(run)
    shown = [c for c in COLUMNS if any(run["figures"].get(c) is not None for run in runs)]
    rows = [["contender", "steps", "seeds", *(COLUMNS[c] for c in shown), "s / case"]]
    for (contender, _), own in contenders.items():
        cells = [mean_and_spread([run["figures"].get(c) for run in own]) for c in shown]
        steps = ", ".join(sorted({str(run["steps"]) for run in own}))
        seconds = mean_and_spread([run["seconds_per_case"] for run in own], digits=2)
        rows.append([contender, steps, str(len(own)), *cells, seconds])
    parts = [f"### {name}, {split} split, {budget} of training ({machine})", _markdown(rows)]
    paired = [_paired_table(contenders, baseline) for baseline in BASELINES]
    return "\n\n".join(parts + [table for table in paired if table])


# ---- contenders as a user meets them ------------------------------------------------------------------------------


def user_sections(lines):
    """The sections on contenders as a user meets them, one for each split, budget, machine and version of ours."""
    runs = [line for line in lines if line["kind"] == "user"]
    keys = {_user_key(run) for run in runs if not run["version"].startswith(FOREIGN)}
    keys |= {_user_key(run) for run in runs if _user_key(run)[:3] not in {key[:3] for key in keys}}
    of_key = {key: [run for run in runs if _user_key(run) in (key, (*key[:3], ""))] for key in sorted(keys)}
    return [_user_section(key, own) for key, own in of_key.items()]


def _user_key(run):
    """(split, minutes, machine, version); the version is "" for another program, which is in the section of each."""
    version = "" if run["version"].startswith(FOREIGN) else run["version"]
    return run["split"], run["minutes"], run["machine"], version


def _user_section(key, runs):
    """Dice and differences to `FIRST`, a row for each set; then what each contender took."""
    split, minutes, machine, version = key
    by_set = defaultdict(lambda: defaultdict(list))
    for run in runs:
        by_set[run["set"]][_label_among(run, runs)].append(run)
    labels = sorted(
        {label for own in by_set.values() for label in own},
        key=lambda label: (USER_ORDER.index(label) if label in USER_ORDER else len(USER_ORDER), label),
    )
    rivals = [label for label in labels if label != FIRST] if FIRST in labels else []
    dice = [["set", "cases", "seeds", *labels, *(f"{FIRST} - {label} [95 %]" for label in rivals)]]
    costs = [["set", "contender", "steps", "training, CPU s", "wall s", "preparing, CPU s", "test, CPU s", "views"]]
    for name, own in sorted(by_set.items()):
        cases = {str(len(run["groups"])) for runs in own.values() for run in runs}
        seeds = {str(len(runs)) for runs in own.values()}
        cells = [mean_and_spread([run["figures"]["dice"] for run in own.get(label, ())]) for label in labels]
        first = {run["seed"]: run for run in own.get(FIRST, ())}
        pairs = [[(first[run["seed"]], run) for run in own.get(r, ()) if run["seed"] in first] for r in rivals]
        differences = [difference_cell(pair, "dice", "dice") for pair in pairs]
        dice.append([name, *(" or ".join(sorted(some)) for some in (cases, seeds)), *cells, *differences])
        costs += [[name, label, *_costs(own[label])] for label in labels if label in own]
    programs = ", ".join(sorted({run["version"] for run in runs}))
    heading = f"### As a user, {split} split, {minutes:g} minutes of training ({machine}; {programs})"
    return "\n\n".join([heading, _markdown(dice), _markdown(costs)])


def _label_among(run, runs):
    """A run's contender; with its flags where others of that name have other flags."""
    flags = {(other["flags"], other["sampling"]) for other in runs if other["contender"] == run["contender"]}
    own = f"{run['flags']} {run['sampling']}".strip()
    return run["contender"] if len(flags) == 1 else f"{run['contender']} ({own})"


def _costs(runs):
    """The cells of steps, seconds and test-time augmentation."""
    named = ("train_cpu_seconds", "train_seconds", "prepare_cpu_seconds", "sample_cpu_seconds")
    seconds = [mean_and_spread([run.get(name) for run in runs], digits=0) for name in named]
    steps = mean_and_spread([run["steps"] for run in runs], digits=0)
    return [steps, *seconds, " / ".join(sorted({run["views"] or "none" for run in runs}))]


# ---- cells ---------------------------------------------------------------------------------------------------------


def mean_and_spread(values, digits=3):
    """The mean over the seeds with the smallest and the largest in brackets; one value alone; a dash for none."""
    values = [value for value in values if value is not None]
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _paired_table(contenders, baseline):
    """Differences to a baseline's runs of the same seeds, with 95 % intervals over patients and seeds."""
    base = {run["seed"]: run for (name, _), own in contenders.items() if name == baseline for run in own}
    rows = []
    for (name, _), own in contenders.items():
        pairs = [(run, base[run["seed"]]) for run in own if name != baseline and run["seed"] in base]
        cells = [difference_cell(pairs, *keys) for _, *keys in PAIRED]
        if any(cell != "–" for cell in cells):
            rows.append([name, str(len(pairs)), *cells])
    if not rows:
        return ""
    heading = ["contender", "seeds", *(f"{label} - {baseline}'s [95 %]" for label, *_ in PAIRED)]
    columns = [column for column in zip(heading, *rows, strict=True) if set(column[1:]) != {"–"}]
    return _markdown([list(row) for row in zip(*columns, strict=True)])


def difference_cell(pairs, key, other):
    """The mean paired difference of a figure and its 95 % interval as text, or a dash.

    pairs: (run, baseline's run), one pair a seed. key: the figure of the run. other: the figure of the baseline. A
    patient's difference under one seed is the mean over its cases; the result is the mean over patients and seeds.
    """
    differences = _by_seed_and_patient(pairs, key, other)
    if not differences.size:
        return "–"
    low, high = interval_over_both(differences)
    return f"{np.nanmean(differences):+.4f} [{low:+.4f}, {high:+.4f}]"


def _by_seed_and_patient(pairs, key, other_key):
    """Mean differences, float [seeds, patients], NaN where a patient has none under a seed."""
    seeds = []
    for run, other in pairs:
        patients = defaultdict(list)
        own, others = run["cases"].get(key, ()), other["cases"].get(other_key, ())
        for group, a, b in zip(run["groups"], own, others, strict=False):
            if a is not None and b is not None:
                patients[group].append(a - b)
        seeds.append({group: float(np.mean(values)) for group, values in patients.items()})
    groups = sorted({group for patients in seeds for group in patients})
    values = [[patients.get(group, np.nan) for group in groups] for patients in seeds if patients]
    return np.array(values, dtype=np.float64).reshape(len(values), len(groups))


def interval_over_both(differences, level=0.95):
    """The bootstrap percentile interval (low, high) of the mean of [seeds, patients]; NaN stands for no value.

    Seeds and patients are both drawn with replacement, so the interval covers another training run as well as other
    patients. With one seed it covers patients alone.
    """
    rng, there = np.random.default_rng(0), ~np.isnan(differences)
    seeds, patients = (rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) for n in differences.shape)
    sums = np.einsum("rs,sp,rp->r", seeds, np.where(there, differences, 0), patients, optimize=True)
    counts = np.einsum("rs,sp,rp->r", seeds, there.astype(float), patients, optimize=True)
    means = sums[counts > 0] / counts[counts > 0]
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def _markdown(rows):
    """A Markdown table whose first row is the heading."""
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
