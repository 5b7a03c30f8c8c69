"""The schemas of summary.json and curves.json, which `evaluate.write_evaluation` writes, and their readers."""

from typing import Any, TypedDict

from ..io.texts import read_json
from ..runtime.errors import UserError

Figure = float | None  # None: undefined


class PlainStatistics(TypedDict):
    """Of `statistics.describe_values`, without an interval."""

    n: int
    mean: Figure
    median: Figure
    std: Figure


class Statistics(PlainStatistics, total=False):
    """Of `statistics.describe_values`."""

    low: Figure
    high: Figure


class Interval(TypedDict):
    """A mean with its interval."""

    mean: Figure
    low: Figure
    high: Figure


class SetSizes(TypedDict):
    """The "sets" of `ensemble_size.size_summary`."""

    sizes: list[int]
    ged2_unbiased: list[Interval]
    matched_iou: list[Interval]
    log_loss_per_area: list[Interval]


class PlainEnsembleSizes(TypedDict):
    """Of `ensemble_size.size_summary`, as earlier versions wrote it."""

    sizes: list[int]
    dice: list[Interval]
    enough: int


class EnsembleSizes(PlainEnsembleSizes, total=False):
    """Of `ensemble_size.size_summary`."""

    sets: SetSizes


class MainFigures(TypedDict):
    """The figures that every summary has."""

    ensemble: dict[str, Statistics | int]
    sample: Statistics
    coarse: Statistics


class Level(MainFigures, total=False):
    """The figures of one class, or of all together."""

    probability: dict[str, Statistics]
    diversity: dict[str, Statistics]
    topology: dict[str, Statistics]
    uncertainty: dict[str, Statistics | Figure]
    calibration: dict[str, Figure]


class Misses(TypedDict):
    """Of `summary.summary_of`, where a threshold was to limit the missed lesion pixels."""

    at_most: float
    classes: dict[str, Statistics]


class Summary(Level, total=False):
    """summary.json, see `summary.summary_of`."""

    classes: dict[str, Level]
    hd95_unit: str
    ensemble_size: EnsembleSizes
    missing: int
    without_truth: int
    unmatched_files: int
    class_names: list[str]
    groups: int | None
    misses: Misses


class Diagram(TypedDict):
    """A reliability diagram: the mean probability of each bin and its share of true pixels."""

    probability: list[Figure]
    truth: list[Figure]


class Retention(TypedDict):
    """The mean error of the share of cases that is kept."""

    kept: list[float]
    error: list[float]


class CurvesOfLevel(TypedDict, total=False):
    """The curves of one class, or of all together."""

    reliability: dict[str, Diagram]
    retention: dict[str, Retention]


class Curves(TypedDict, total=False):
    """curves.json, see `summary.curves_of`."""

    all: CurvesOfLevel
    classes: dict[str, CurvesOfLevel]
    ensemble_size: EnsembleSizes | None


def read_summary(path):
    """The summary of an evaluation. Raises `UserError` for a file of wrong types or without a figure's statistics."""
    summary = read_json(path, Summary)
    for level in (summary, *summary.get("classes", {}).values()):
        if not isinstance(level["ensemble"].get("cases"), int):
            raise _incomplete(path, 'has no number of "cases"')
        for key, values in _statistics_in(level):
            if values["n"] > 0 and None in (values["mean"], values["median"], values["std"]):
                raise _incomplete(path, f'has "n": {values["n"]} in "{key}", but no mean, median or std')
    return summary


def read_curves(path):
    """The curves of an evaluation. Raises `UserError` for a file of wrong types, and for curves of unequal lengths."""
    curves = read_json(path, Curves)
    for level in (curves.get("all", {}), *curves.get("classes", {}).values()):
        for kind, first, second in (("reliability", "probability", "truth"), ("retention", "kept", "error")):
            for key, curve in level.get(kind, {}).items():
                if len(curve[first]) != len(curve[second]):
                    raise _incomplete(path, f'has lists of unequal lengths in "{kind}.{key}"')
    sizes = curves.get("ensemble_size")
    if sizes is not None:
        if len(sizes["sizes"]) != len(sizes["dice"]) or not any(one["mean"] is not None for one in sizes["dice"]):
            raise _incomplete(path, 'has lists of unequal lengths, or no figure, in "ensemble_size"')
        if len({len(values) for values in sizes.get("sets", {}).values()}) > 1:
            raise _incomplete(path, 'has lists of unequal lengths in "ensemble_size.sets"')
    return curves


def _statistics_in(level):
    named: dict[str, Any] = {"sample": level["sample"], "coarse": level["coarse"], **level["ensemble"]}
    named |= level.get("misses", {}).get("classes", {})
    for part in ("probability", "diversity", "topology", "uncertainty"):
        named |= level.get(part, {})
    return [(key, values) for key, values in named.items() if isinstance(values, dict)]


def _incomplete(path, what):
    return UserError(f"{path}: {what}; evaluate again, which writes it anew")
