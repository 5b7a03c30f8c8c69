"""The rules that the figures of an evaluation follow, in sentences; docs/evaluation.md has all of them."""

import math

from .calibration import BINS
from .diversity import LEVELS
from .statistics import RESAMPLES
from .uncertainty import INTERVAL


def rules_of(summary, settings, is_volume):
    """The rules of the figures that a summary has, a sentence or two each; what it lacks is not explained.

    summary: of `summary.summary_of`, without its "rules". settings: the `evaluation.Settings`. is_volume: whether the
    cases are volumes. Returns a list of texts.
    """
    diversity, members, raters = summary["diversity"], len(summary["members"]), bool(summary["rater_names"])
    calibration = {name for name, value in summary["calibration"].items() if _defined(value)} - {"cases", "cases_band"}
    calibrated, banded = bool(calibration), any(name.endswith("_band") for name in calibration)
    compared = diversity["ged2"]["n"] > 0
    rules = [
        (True, "Dice = 2TP/(2TP+FP+FN), IoU = TP/(TP+FP+FN), per case, then averaged over cases."),
        (
            True,
            "Both masks empty: undefined, left out of the mean. One empty: Dice, IoU, NSD and lesion F1 0, HD95 and "
            "ASSD the image's diagonal.",
        ),
        (_has_intervals(summary), _interval(summary)),
        (
            "classes" in summary,
            "Several classes: each is scored by itself; a case's mean is over its classes that are defined, and "
            "figures of all pixels together are averaged over the classes.",
        ),
        (True, _surfaces(summary)),
        (
            True,
            "Volume difference: (prediction - truth) / truth; volume error: its absolute value; in "
            f"{summary['volume_unit']} in the table of cases. Undefined without truth.",
        ),
        (
            True,
            "Lesions: connected components (over corners too), matched one to one by the largest sum of IoU; found "
            f"where a pair's IoU is at least {settings.lesion_iou:g}. Lesion F1 = 2TP/(2TP+FP+FN) of lesions.",
        ),
        (
            is_volume,
            "A volume is one case; slices and volumes are not mixed. Volumes are compared in one orientation, which "
            "their files' affines tell.",
        ),
        (True, "A prediction of another size is brought to the truth's grid by nearest neighbour."),
        (
            raters,
            "Several raters: the truth is what more than half of them marked"
            + ("; for ECE and Brier, the fraction who marked it." if calibrated else "."),
        ),
        (
            calibrated,
            f"ECE: {BINS} equal bins of the foreground's probability; adaptive ECE: {BINS} bins of equally many "
            "pixels. They and Brier are of all cases' pixels together; in the table of cases they are per case.",
        ),
        (banded, _band(is_volume)),
        *_scores(summary["uncertainty"]),
        (
            raters,
            "Rater Dice: the fused mask to each rater, averaged where defined; raters' agreement: mean Dice over pairs "
            "of raters. Per case; of a rater over the cases that he marked.",
        ),
        (
            compared,
            "GED2 = 2 E[d(S,Y)] - E[d(S,S')] - E[d(Y,Y')] of members S and raters Y, d = 1 - IoU, IoU of two empty "
            "masks 1, each mask also paired with itself. Matched IoU: Hungarian, both sides repeated to the least "
            "common multiple. Both per case.",
        ),
        (
            compared,
            "Collective insight = 3 S D V/(S + D + V): S the sensitivity of the members' union to the raters' union, D "
            "the mean over raters of the best Dice of a member, V = 1 - mean difference of the smallest and of the "
            "largest 1 - IoU among pairs of members and of raters.",
        ),
        (
            members > 1,
            "Members: sensitivity and specificity are STAPLE's estimates, which know no truth, averaged over cases.",
        ),
        ("ensemble_size" in summary, summary.get("ensemble_size", {}).get("rule")),
        (
            compared and members < 2 and calibrated,
            f"A run with a single member stands for {LEVELS} masks where sets are compared: its probability cut at "
            f"(k + 0.5)/{LEVELS}.",
        ),
    ]
    return [rule for is_there, rule in rules if is_there]


def _defined(value):
    return not math.isnan(value)


def _has_intervals(summary):
    return any(_defined(one["low"]) for one in summary["ensemble"].values() if isinstance(one, dict))


def _interval(summary):
    spread = "groups (patients)" if summary["groups"] else "cases"
    return f"Interval: 95 %, of the mean, by {RESAMPLES} bootstrap resamples of {spread}."


def _surfaces(summary):
    tolerances = ", ".join(f"{tolerance:g}" for tolerance in summary["nsd_tolerances"])
    return (
        "HD95: the larger of the two directed 95th percentiles of surface distances; ASSD: the mean of both "
        f"directions' together; NSD: the share of them within {tolerances} {summary['hd95_unit']}."
    )


def _band(is_volume):
    space = ", in a volume with its in-plane size and in units of its smallest spacing" if is_volume else ""
    return (
        "Band: pixels within max(1, round(0.03 sqrt(H W))) of the truth's boundary (of the nearest pixel of the other "
        f"kind){space}. An empty truth has none."
    )


def _scores(uncertainty):
    """What the scores of a case are, and how they are judged: pairs as in `rules_of`."""
    told = {
        "agreement": "agreement = mean Dice over pairs of members",
        "expected_dice": "expected Dice = what the probability p promises, 2 sum(p in mask)/(mask + sum p)",
        "volume_spread": "volume spread = std/mean of the members' volumes",
    }
    shown = [text for name, text in told.items() if uncertainty[name]["n"]]
    if _defined(uncertainty["volume_coverage"]):
        shown.append(f"the members' interval: the {INTERVAL[0]}th to {INTERVAL[1]}th percentile of their volumes")
    return [
        (bool(shown), f"Scores of a case: {'; '.join(shown)}."),
        (
            any(uncertainty[name]["judged"] > 1 for name in told),
            "Is a score any good: its rank correlation (Spearman) with the error 1 - Dice, and the area under the "
            "retention curve: mean error of the k surest cases, averaged over k = 1..n; beside it that of no knowledge "
            "(the mean error) and of the best order (oracle).",
        ),
    ]
