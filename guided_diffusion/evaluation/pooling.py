"""Several results folders, as of the folds of a cross-validation, as one evaluation."""

import math

from ..runtime.console import text_table
from ..runtime.errors import UserError
from .metrics import metric_names
from .statistics import mean_defined
from .summary import by_case, mean_row
from .summary_table import metric_label

FOLD_FIGURES = ("dice", "iou", "sensitivity", "precision", "hd95")
# Of a manifest's settings: these may differ between folds. A temperature is fitted for each checkpoint.
OWN_SETTINGS = ("temperature", "save_samples", "uncertainty_maps", "debug", "precision")


def check_same_settings(manifests, folders):
    """Raise `UserError` where results folders were sampled with different settings, or hold different classes.

    manifests: of the folders, {} where a folder has none. folders: their names, for the message.
    """
    first = _settings_of(manifests[0])
    for manifest, folder in zip(manifests[1:], folders[1:], strict=True):
        other = _settings_of(manifest)
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                raise UserError(
                    f"--pred_dir: {folders[0]} has {name} {first.get(name)}, {folder} has {other.get(name)}; pool "
                    "results of the same settings"
                )


def _settings_of(manifest):
    recorded = manifest.get("settings", {})
    own = (*OWN_SETTINGS, "threshold") if recorded.get("max_misses") else OWN_SETTINGS  # fitted for each checkpoint too
    settings = {name: value for name, value in recorded.items() if name not in own}
    return settings | {"class_names": manifest.get("class_names")}


def pooled_evaluation(evaluations, folders):
    """One `evaluate.Evaluation` of the cases of several, by the same rules. folders: their names, for messages.

    Raises `UserError` for a case that is in two of them, and for other classes or units.
    """
    whole, homes = evaluations[0].blank(), {}
    for evaluation, folder in zip(evaluations, folders, strict=True):
        for name in ("class_names", "settings", "distance_unit", "volume_unit"):
            ours, theirs = getattr(whole, name), getattr(evaluation, name)
            if ours != theirs:
                raise UserError(
                    f"--pred_dir: the {name} of {folders[0]} and {folder} differ, {ours} and {theirs}; pool results "
                    "that are measured alike"
                )
        for name in {row["name"] for row in evaluation.rows} | set(evaluation.failed):
            if name in homes:
                raise UserError(
                    f"--pred_dir: the case {name} is in {homes[name]} and in {folder}; pool folders without common "
                    "cases"
                )
            homes[name] = folder
        whole.raters = tuple(dict.fromkeys((*whole.raters, *evaluation.raters)))
        whole.unmatched += evaluation.unmatched
        whole.join(evaluation)
    return whole


def fold_figures(evaluations, labels):
    """The means of each fold: a list of {"fold", "cases", and the mean of each of `metrics.metric_names`}.

    labels: the folds' names. With several classes a case's figure is its mean over classes.
    """
    found = []
    for evaluation, label in zip(evaluations, labels, strict=True):
        cases = [case[0] if len(case) == 1 else mean_row(case) for case in by_case(evaluation.rows)]
        names = metric_names(evaluation.settings.tolerances)
        means = {name: mean_defined([case.get(name, math.nan) for case in cases]) for name in names}
        found.append({"fold": label, "cases": len(cases), **means})
    return found


def format_folds(folds, summary):
    """The folds' means as a table for the console. summary: of all cases together, see `summary.summary_of`."""
    names = [name for name in FOLD_FIGURES if name in folds[0]]
    rows = [[one["fold"], one["cases"], *(f"{one[name]:.4f}" for name in names)] for one in folds]
    return text_table(["fold", "cases", *(metric_label(name, summary) for name in names)], rows)
