"""The report over a results folder: report.html, with the figures, charts and a gallery of all cases."""

import csv
import math
import os
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np

from .calibration import BINS
from .case_views import views_of
from .charts import Chart, histogram
from .evaluation import raters_of
from .files import atomic_path, read_json
from .logger import counted
from .metrics import METRICS
from .page import data_uri, figure, header, part, write_page
from .pictures import class_colour
from .results import Predictions

EMBEDDED = 12 * 2**20  # bytes of pictures up to which they lie in the page itself, which can then still be mailed
BETTER_LOW = ("hd95", "assd", "ece", "brier", "ged2", "volume", "doubt")  # beginnings of what is worse when it is more
LABELS = {"hd95": "HD95", "assd": "ASSD", "iou": "IoU", "ece": "ECE", "ged2": "GED²", "ece_band": "ECE in band"}


def write_report(results_dir, dataset, units, out_dir=None, read_raters=raters_of, progress=None):
    """Write report.html over the results in `results_dir` to `out_dir` (default: there), whole or not at all.

    units: the `data.Unit`s that may be shown; those without a prediction are left out. The figures are those of
    metrics.csv, summary.json and curves.json in `out_dir`, where they are. Pictures of more than `EMBEDDED` bytes lie
    beside it in report_files/ and are loaded as they are looked at. read_raters: called as `raters_of` is. progress:
    wraps the list of units (a tqdm). Returns the page's path.
    """
    results_dir, out_dir = Path(results_dir), Path(out_dir or results_dir)
    path = out_dir / "report.html"
    predictions = Predictions(results_dir, [unit.name for unit in units], dataset.classes)
    scores = read_scores(out_dir / "metrics.csv")
    pictures, cases = Pictures(out_dir / "report_files"), []
    for unit in progress(units) if progress else units:
        views = views_of(predictions, dataset, unit, read_raters)
        if views:
            cases.append(_case(unit, views, pictures, scores.get(unit.name, {})))
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
        """Remove what an earlier page left in the folder; to be called once the new page is there."""
        for folder, _, names in os.walk(self.folder, topdown=False):
            for name in names:
                path = Path(folder, name)
                if path.relative_to(self.folder).as_posix() not in self.written:
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
    doubts = _doubt([view for _, view in views])
    return {
        "name": unit.name,
        "pictures": {"card": pictures.add(unit.name, "card.jpg", card), "slices": slices},
        "indices": [k for k, _ in views],
        "depth": len(unit.cases),
        "first": largest,
        "layers": first.layers(),
        "size": list(shape),
        "card": list(card_size),
        "scores": {key: value for key, value in scores.items() if key != "empty"} | doubts,
        "empty": scores.get("empty", ""),
    }


def _doubt(views):
    """How unsure a case is: 1 - the Dice that its probability promises, over what is shown of it."""
    if any(view.probability is None for view in views):
        return {}
    inside = sum(float(view.probability[view.masks].sum()) for view in views)
    total = sum(float(view.masks.sum() + view.probability.sum()) for view in views)
    return {"doubt": 1 - 2 * inside / total} if total else {}


def _columns(cases):
    """What cases can be sorted by: [{"key", "label", "worst": "low" or "high"}], first what they are sorted by at
    first, the Dice or, without truth, the uncertainty."""
    keys = dict.fromkeys(key for case in cases for key in case["scores"])
    first = [key for key in ("dice", "doubt") if key in keys]
    keys = [*first, *(key for key in keys if key not in first)]
    columns = [
        {"key": key, "label": label_of(key), "worst": "high" if key.startswith(BETTER_LOW) else "low"} for key in keys
    ]
    return columns


def label_of(key):
    """A figure's name for people."""
    text = LABELS.get(key, "uncertainty" if key == "doubt" else key.replace("_", " ").replace("dice", "Dice"))
    return text[0].upper() + text[1:]


def _legend(names):
    """Of several classes each one's name and colour."""
    return [[name, "#%02x%02x%02x" % class_colour(k)] for k, name in enumerate(names)] if len(names) > 1 else []


# ---- the page ----------------------------------------------------------------------------------------------------


def _title(results_dir):
    folder = Path(results_dir).resolve()
    return f"{folder.parent.name}/{folder.name}"


def _read(path):
    return read_json(path) if path.exists() else {}


def _body(out_dir, results_dir, dataset, cases, columns):
    summary, curves = _read(out_dir / "summary.json"), _read(out_dir / "curves.json")
    manifest = _read(results_dir / "manifest.json")
    charts = [*_distributions(cases, columns), *_reliability(curves), *_retention(curves), *_scatter(cases, columns)]
    parts = [header("Segmentation report", _facts(results_dir, dataset, cases, manifest)), "<main>"]
    parts.append('<div class="overview">')
    if summary:
        parts.append(f'<section aria-label="Figures"><h2>Figures</h2>{_table(summary)}{_rules(summary)}</section>')
    else:
        parts.append('<p class="note">There is no truth to compare with: cases are sorted by their uncertainty.</p>')
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
    """A histogram of each metric, or of the uncertainty where there is no truth."""
    shown = []
    keys = [column["key"] for column in columns]
    for key in [key for key in METRICS if key in keys] or [key for key in keys if key == "doubt"]:
        values = [case["scores"][key] for case in cases if key in case["scores"]]
        if len(values) > 1:
            label = label_of(key)
            share = min(values) >= 0 and max(values) <= 1 and key != "doubt"
            bounds = (math.floor(min(values) * 10) / 10 if min(values) > 0.5 else 0, 1) if share else None
            chart = histogram(f"Distribution of {label} over cases", values, label, bounds=bounds)
            shown.append(f'<div class="chart" data-column="{escape(key)}">{figure(f"{label} per case", chart)}</div>')
    return shown


def _reliability(curves):
    """Reliability of the probability, over all pixels and in the band around the boundary."""
    tables = curves.get("all", {}).get("reliability", {})
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


def _retention(curves):
    """The mean error of the surest cases, by how many of them are kept."""
    scores = curves.get("all", {}).get("retention", {})
    highest = max((max(score["error"], default=0) for score in scores.values()), default=0)
    if not highest:
        return []
    chart = Chart(
        "Error of the surest cases", (0, 1, "share of cases kept, surest first"), (0, highest, "mean 1 - Dice")
    )
    for series, (name, score) in enumerate(scores.items(), start=1):
        chart.line(score["kept"], score["error"], series, name.replace("_", " "))
    return [f'<div class="chart">{figure("Is the uncertainty any good? Error retention", chart.svg())}</div>']


def _scatter(cases, columns):
    """The uncertainty of each case against its Dice."""
    both = [case for case in cases if {"dice", "doubt"} <= case["scores"].keys()]
    if len(both) < 3:
        return []
    doubts, dices = ([case["scores"][key] for case in both] for key in ("doubt", "dice"))
    chart = Chart("Uncertainty and Dice of each case", (0, max(doubts) or 1, "uncertainty"), (0, 1, "Dice"))
    chart.dots(doubts, dices, [case["name"] for case in both])
    return [f'<div class="chart">{figure("Uncertainty and Dice, a dot a case", chart.svg())}</div>']
