"""The report over a results folder: report.html, with the figures, charts and a gallery of all cases."""

import csv
import math
import os
import re
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np
from tqdm import tqdm

from .calibration import BINS
from .case_views import slices_of
from .charts import Chart, histogram, rounded
from .errors import UserError
from .evaluation import raters_of
from .files import atomic_path, read_json
from .logger import console, counted
from .page import data_uri, figure, header, part, write_page
from .pictures import class_colour
from .results import Predictions

NAMES = re.compile(r"(\d+_)?(card|image)\.jpg|(\d+_)?(lines|maps)\.png")  # of the pictures
EMBEDDED = 12 * 2**20  # bytes of pictures up to which they lie in the page itself, which can then still be mailed
WORSE_HIGH = re.compile("hd95|assd|(.*_)?(ece|brier)|ged2|volume_(difference|error|spread)|.*false")  # beginnings
LABELS = {"hd95": "HD95", "assd": "ASSD", "iou": "IoU", "ged2": "GED²", "agreement": "agreement of members"}
CHARTED = ("dice", "sensitivity", "precision", "hd95")
FIRST = ("dice", "expected_dice", "agreement")  # what cases are sorted by at first, as far as there is truth


def write_report(results_dir, dataset, units, out_dir=None, read_raters=raters_of, progress=None):
    """Write report.html over the results in `results_dir` to `out_dir` (default: there), whole or not at all.

    units: the `data.Unit`s that may be shown; those without a prediction are left out. The figures are those of
    metrics.csv, summary.json and curves.json in `out_dir`, where they are. Pictures of more than `EMBEDDED` bytes lie
    beside it in report_files/ and are loaded as they are looked at. read_raters: called as `raters_of` is. progress:
    wraps the list of units (a tqdm). Returns the page's path.
    """
    results_dir, out_dir = Path(results_dir), Path(out_dir or results_dir)
    path = out_dir / "report.html"
    firsts = {unit.name: unit.cases[0] for unit in units}
    predictions = Predictions(results_dir, firsts, dataset.classes, lambda name: dataset.geometry(firsts[name]))
    scores = read_scores(out_dir / "metrics.csv")
    pictures, cases = Pictures(out_dir / "report_files"), []
    for unit in progress(units) if progress else units:
        slices = slices_of(predictions, dataset, unit, read_raters)
        if slices is not None:
            cases.append(_case(unit, slices.views, pictures, scores.get(unit.name) or slices.scores))
    columns = _columns(cases)
    data = {
        "cases": [case | {"pictures": pictures.sources(case["pictures"])} for case in cases],
        "columns": columns,
        "classes": _legend(dataset.class_names),
    }
    body = _body(out_dir, results_dir, dataset, cases, columns)
    write_page(path, f"Segmentation report: {_title(results_dir)}", body, scripts=("theme.js", "report.js"), data=data)
    pictures.tidy()
    return path


def try_report(*arguments, **keywords):
    """`write_report` with a bar; an image that cannot be read is told, and it returns None: the rest is there."""
    try:
        return write_report(*arguments, **keywords, progress=lambda units: tqdm(units, desc="report", unit="case"))
    except UserError as error:
        console().warning(f"warning: no report.html: {error}")
        return None


class Pictures:
    """The pictures of a page: kept to be part of it, or written to `folder` once they are more than `limit` bytes."""

    def __init__(self, folder, limit=None):
        self.folder, self.limit = Path(folder), EMBEDDED if limit is None else limit
        self.held, self.size, self.beside, self.written = {}, 0, False, set()

    def add(self, case, name, data):
        """Take a picture's bytes; returns the key for `sources`, CASE/NAME. name: it ends in .jpg or .png."""
        key = f"{case}/{name}"
        self.held[key] = data
        self.size += len(data)
        if not self.beside and self.size > self.limit:
            self.beside = True
        if self.beside:
            for held, content in self.held.items():
                self._write(held, content)
            self.held.clear()
        return key

    def _write(self, key, data):
        with atomic_path(self.folder / key) as temporary:
            temporary.write_bytes(data)
        self.written.add(key)

    def sources(self, keys):
        """What the page names pictures by: data URIs, or paths relative to it. keys: a dict or list of them, or one."""
        if isinstance(keys, dict):
            return {name: self.sources(key) for name, key in keys.items()}
        if isinstance(keys, list):
            return [self.sources(key) for key in keys]
        if keys is None or not self.beside:
            return keys and data_uri(self.held[keys], "png" if keys.endswith(".png") else "jpeg")
        return quote(f"{self.folder.name}/{keys}")

    def tidy(self):
        """Remove the pictures that an earlier page left in the folder; to be called once the new page is there."""
        for folder, _, names in os.walk(self.folder, topdown=False):
            for name in names:
                path = Path(folder, name)
                if NAMES.fullmatch(name) and path.relative_to(self.folder).as_posix() not in self.written:
                    path.unlink()
            if not os.listdir(folder):
                os.rmdir(folder)


def read_scores(path):
    """metrics.csv as {case: {figure: number, "empty": text}}; of several classes the means over them."""
    if not path.exists():
        return {}
    rows = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["name"], []).append(row)
    return {name: _mean_scores(own) for name, own in rows.items()}


def _mean_scores(rows):
    whole = [row for row in rows if row.get("class") == "mean"] or rows
    scores = {}
    for key in whole[0]:
        values = [number for number in (_number(row[key]) for row in whole) if number is not None]
        if values and key not in ("name", "class", "group"):
            scores[key] = sum(values) / len(values)
    return scores | {"empty": ", ".join(dict.fromkeys(row["empty"] for row in rows if row.get("empty")))}


def _number(text):
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


# ---- cases -------------------------------------------------------------------------------------------------------


def _case(unit, views, pictures, scores):
    """A case for the page, its pictures by their keys."""
    masks = [view.masks.sum() for _, view in views]
    largest = int(np.argmax(masks)) if any(masks) else len(views) // 2
    slices = []
    for index, (k, view) in enumerate(views):
        start = "" if k is None else f"{k:03d}_"
        data, shape = view.outlines()
        slices.append({"image": pictures.add(unit.name, f"{start}image.jpg", view.picture())})
        slices[-1]["lines"] = pictures.add(unit.name, f"{start}lines.png", data)
        maps = view.maps()
        slices[-1]["maps"] = maps and pictures.add(unit.name, f"{start}maps.png", maps)
        if index == largest:
            first = view
    card, card_size = first.card()
    return {
        "name": unit.name,
        "pictures": {"card": pictures.add(unit.name, "card.jpg", card), "slices": slices},
        "indices": [k for k, _ in views],
        "depth": len(unit.cases),
        "first": largest,
        "layers": first.layers(),
        "size": list(shape),
        "card": list(card_size),
        "scores": {key: value for key, value in scores.items() if key != "empty"},
        "empty": scores.get("empty", ""),
    }


def _columns(cases):
    """What cases can be sorted by: [{"key", "label", "worst": "low" or "high"}], what they are sorted by at first
    leading."""
    keys = dict.fromkeys(key for case in cases for key in case["scores"])
    first = [key for key in FIRST if key in keys]
    return [
        {"key": key, "label": label_of(key), "worst": "high" if WORSE_HIGH.match(key) else "low"}
        for key in (*first, *(key for key in keys if key not in first))
    ]


def label_of(key):
    """A figure's name for people."""
    text = LABELS.get(key, key.replace("_band", "_in_band").replace("_", " "))
    for plain, right in (("dice", "Dice"), ("ece", "ECE"), ("nsd", "NSD at"), ("f1", "F1"), ("brier", "Brier")):
        text = re.sub(rf"\b{plain}\b", right, text)
    return text[0].upper() + text[1:]


def _legend(names):
    """Of several classes each one's name and colour."""
    if len(names) == 1:
        return []
    return [[name, "#{:02x}{:02x}{:02x}".format(*class_colour(k))] for k, name in enumerate(names)]


# ---- the page ----------------------------------------------------------------------------------------------------


def _title(results_dir):
    folder = Path(results_dir).resolve()
    return f"{folder.parent.name}/{folder.name}"


def _read(path):
    return read_json(path) if path.exists() else {}


def _body(out_dir, results_dir, dataset, cases, columns):
    summary, curves = _read(out_dir / "summary.json"), _read(out_dir / "curves.json")
    manifest = _read(results_dir / "manifest.json")
    level = curves.get("all") or next(iter(curves.get("classes", {}).values()), {})
    charts = [
        *_distributions(cases, columns),
        *_reliability(level.get("reliability", {})),
        *_retention(level.get("retention", {})),
        *_scatter(cases),
        *_sizes(curves.get("ensemble_size")),
    ]
    parts = [header("Segmentation report", _facts(results_dir, dataset, cases, manifest)), "<main>"]
    parts.append('<div class="overview">')
    if summary:
        parts.append(f'<section aria-label="Figures"><h2>Figures</h2>{_table(summary)}{_rules(summary)}</section>')
    else:
        parts.append(
            '<p class="note">There is no truth to compare with. Cases are sorted by the Dice that is to be expected if '
            "their probability is right, those with the most doubt first.</p>"
        )
    if charts:
        parts.append(
            f'<section aria-label="Charts"><h2>Charts</h2><div class="charts">{"".join(charts)}</div></section>'
        )
    parts.append("</div>")
    parts += [part("gallery.html"), "</main>"]
    return "\n".join(parts)


def _facts(results_dir, dataset, cases, manifest):
    settings = manifest.get("settings", {})
    facts = [("Results", results_dir.resolve()), ("Data", dataset.data_dir), ("Cases", len(cases))]
    if len(dataset.class_names) > 1:
        facts.append(("Classes", ", ".join(dataset.class_names)))
    if manifest.get("checkpoint"):
        facts.append(("Checkpoint", f"{manifest['checkpoint']}, step {manifest.get('step')}"))
    if "sampler" in settings:
        steps = counted(len(settings["timesteps"]), "step")
        facts.append(("Members", f"{settings['num_ensemble']} by {settings['sampler']}, {steps}"))
        facts.append(("Fused by", settings["fuse"]))
        facts.append(("Seed", settings["seed"]))
    return facts


def _table(summary):
    """The summary's statistics as a table, for each class where they are several."""
    parts = summary.get("classes") or {}
    groups = {"": summary} | (parts if len(parts) > 1 else {})
    rows = []
    for title, level in groups.items():
        if title:
            rows.append(f'<tr><th colspan="6" scope="rowgroup">{escape(title)}</th></tr>')
        rows += [_row(label, values) for label, values in _statistics(level, summary.get("hd95_unit", ""))]
    ensemble = summary["ensemble"]
    notes = [counted(ensemble["cases"], "case")]
    notes += [
        f"{ensemble[f'{which}_empty']} {text}"
        for which, text in (("both", "both masks empty"), ("prediction", "prediction empty"), ("truth", "truth empty"))
        if ensemble.get(f"{which}_empty")
    ]
    notes += [
        f"{counted(summary[key], 'case')} {text}"
        for key, text in (("missing", "without a prediction"), ("without_truth", "without truth"))
        if summary.get(key)
    ]
    return (
        '<div class="scroll"><table class="figures"><thead><tr><th scope="col">Figure</th><th scope="col">Mean</th>'
        '<th scope="col">95 % interval</th><th scope="col">Median</th><th scope="col">SD</th><th scope="col">n</th>'
        f'</tr></thead><tbody>{"".join(rows)}</tbody></table></div><p class="note">{escape("; ".join(notes))}.</p>'
    )


def _statistics(level, unit):
    """(label, statistics or a number) of each figure of one level of the summary that is defined."""
    described = {key: value for key, value in level["ensemble"].items() if isinstance(value, dict)}
    described |= {"sample_dice": level["sample"], "coarse_dice": level["coarse"]}
    described |= level.get("diversity", {})
    described |= {key: value for key, value in level.get("uncertainty", {}).items() if isinstance(value, dict)}
    for key, values in described.items():
        if values.get("n"):
            label = label_of(key)
            distance = key in ("hd95", "assd") or key.startswith("nsd")
            yield f"{label} ({unit})" if distance and unit else label, values
    for key, value in level.get("calibration", {}).items():
        if isinstance(value, (int, float)) and not key.startswith("cases"):
            yield f"{label_of(key)}, all pixels together", value


def _row(label, values):
    if isinstance(values, dict):
        low, high = values.get("low"), values.get("high")
        interval = "" if low is None or high is None else f"{low:.4f} to {high:.4f}"
        cells = [f"{values['mean']:.4f}", interval, f"{values['median']:.4f}", f"{values['std']:.4f}", values["n"]]
    else:
        cells = [f"{values:.4f}", "", "", "", ""]
    return f'<tr><th scope="row">{escape(label)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _rules(summary):
    rules = "".join(f"<li>{escape(rule)}</li>" for rule in summary.get("rules", ()))
    return f"<details><summary>The rules that these figures follow</summary><ul>{rules}</ul></details>" if rules else ""


# ---- charts ------------------------------------------------------------------------------------------------------


def _distributions(cases, columns):
    """Histograms of the cases' figures, or of the expected Dice where there is no truth."""
    shown, keys = [], [column["key"] for column in columns]
    for key in [key for key in CHARTED if key in keys] or keys[:1]:
        values = [case["scores"][key] for case in cases if key in case["scores"]]
        if len(values) > 1:
            label, share = label_of(key), min(values) >= 0 and max(values) <= 1
            bounds = (math.floor(min(values) * 10) / 10 if min(values) > 0.5 else 0, 1) if share else None
            chart = histogram(f"Distribution of {label} over cases", values, label, bounds=bounds)
            shown.append(f'<div class="chart" data-column="{escape(key)}">{figure(f"{label} per case", chart)}</div>')
    return shown


def _reliability(tables):
    """Reliability of the probability, over all pixels and in the band around the boundary."""
    chart = Chart("Reliability of the probability", (0, 1, "predicted probability"), (0, 1, "fraction of true pixels"))
    chart.reference((0, 0), (1, 1))
    names = (("probability", "all pixels"), ("probability_band", "around the boundary"), ("coarse_band", "coarse mask"))
    for series, (key, label) in enumerate(names, start=1):
        bins = tables.get(key)
        if bins:
            chart.line(bins["probability"], bins["truth"], series, label)
    if not chart.keys:
        return []
    return [f'<div class="chart">{figure(f"Reliability ({BINS} bins; the diagonal is ideal)", chart.svg())}</div>']


def _retention(scores):
    """The mean error of the surest cases, by how many of them are kept."""
    highest = max((max(score["error"], default=0) for score in scores.values()), default=0)
    if not highest:
        return []
    chart = Chart(
        "Error of the surest cases", (0, 1, "share of cases kept, surest first"), (0, highest, "mean 1 - Dice")
    )
    for series, (name, score) in enumerate(scores.items(), start=1):
        chart.line(score["kept"], score["error"], series, label_of(name))
    return [f'<div class="chart">{figure("Is the uncertainty any good? Error retention", chart.svg())}</div>']


def _scatter(cases):
    """The Dice that each case's probability promises against the one that it has."""
    both = [case for case in cases if {"dice", "expected_dice"} <= case["scores"].keys()]
    if len(both) < 3:
        return []
    promised, dices = ([case["scores"][key] for case in both] for key in ("expected_dice", "dice"))
    low = math.floor(min(*promised, *dices) * 10) / 10
    low = low if low < 1 else 0.9
    chart = Chart("Expected and true Dice of each case", (low, 1, "expected Dice"), (low, 1, "Dice"))
    chart.reference((low, low), (1, 1))
    chart.dots(promised, dices, [case["name"] for case in both])
    return [f'<div class="chart">{figure("Expected and true Dice, a dot a case", chart.svg())}</div>']


def _sizes(found):
    """How the Dice grows with the number of members (see `ensemble_size`)."""
    if not found:
        return []
    sizes, means, lows, highs = (
        found["sizes"],
        *([one[key] for one in found["dice"]] for key in ("mean", "low", "high")),
    )
    ends = [value for value in (*means, *lows, *highs) if value is not None]
    chart = Chart("Dice by ensemble size", (1, sizes[-1], "members"), (*rounded(min(ends), max(ends)), "mean Dice"))
    chart.area(sizes, lows, highs, 1)
    chart.line(sizes, means, 1)
    chart.mark(found["enough"], f"{found['enough']} suffice" if found["enough"] < sizes[-1] else "still grows")
    return [f'<div class="chart">{figure("Ensemble size, with the 95 % interval", chart.svg())}</div>']
