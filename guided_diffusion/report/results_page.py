"""The report over a results folder: report.html, with the figures, charts and a gallery of all cases."""

import csv
import math
import os
import re
from pathlib import Path
from urllib.parse import quote

import numpy as np
from tqdm import tqdm

from ..data.truth import raters_of
from ..evaluation.summary import DEFINITIONS
from ..inference.plan import describe_members
from ..inference.predictions import Predictions
from ..io.drawing import class_colour
from ..io.files import atomic_path, read_json
from ..runtime.console import console, counted
from ..runtime.errors import UserError
from .case_pictures import slices_of
from .figures import charts_of, figure_label, table_of
from .page import data_uri, header, part, write_page

PICTURE_NAMES = re.compile(r"(\d+_)?(card|image)\.jpg|(\d+_)?(lines|maps)\.png")  # of the pictures


EMBEDDED = 12 * 2**20  # bytes of pictures up to which they lie in the page itself, which can then still be mailed


WORSE_HIGH = re.compile("hd95|assd|(.*_)?(ece|brier)|ged2|volume_(difference|error|spread)|.*false")  # beginnings


FIRST = ("dice", "expected_dice", "agreement")  # what cases are sorted by at first, as far as there is truth


def write_report(results_dir, dataset, units, out_dir=None, read_raters=raters_of, progress=None):
    """Write report.html over the results in `results_dir` to `out_dir` (default: there), whole or not at all.

    units: the `units.Unit`s that may be shown; those without a prediction are left out. The figures are those of
    metrics.csv, summary.json and curves.json in `out_dir`, where they are. Pictures of more than `EMBEDDED` bytes lie
    beside it in report_files/ and are loaded as they are looked at. read_raters: called as `raters_of` is. progress:
    wraps the list of units (a tqdm). Returns the page's path.
    """
    results_dir, out_dir = Path(results_dir), Path(out_dir or results_dir)
    path = out_dir / "report.html"
    firsts = {unit.name: unit.cases[0] for unit in units}
    predictions = Predictions(results_dir, firsts, dataset.classes, lambda name: dataset.load_geometry(firsts[name]))
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
    write_page(
        path, f"Segmentation report: {_results_title(results_dir)}", body, scripts=("theme.js", "report.js"), data=data
    )
    pictures.tidy()
    return path


def try_report(*arguments, **keywords):
    """`write_report` with a progress bar. Warns and returns None where an image cannot be read: the rest is there."""
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
                if PICTURE_NAMES.fullmatch(name) and path.relative_to(self.folder).as_posix() not in self.written:
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
        values = [number for number in (_finite_number(row[key]) for row in whole) if number is not None]
        if values and key not in ("name", "class", "group"):
            scores[key] = sum(values) / len(values)
    return scores | {"empty": ", ".join(dict.fromkeys(row["empty"] for row in rows if row.get("empty")))}


def _finite_number(text):
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
        {"key": key, "label": figure_label(key), "worst": "high" if WORSE_HIGH.match(key) else "low"}
        for key in (*first, *(key for key in keys if key not in first))
    ]


def _legend(names):
    """With several classes the name and colour of each."""
    if len(names) == 1:
        return []
    return [[name, "#{:02x}{:02x}{:02x}".format(*class_colour(k))] for k, name in enumerate(names)]


# ---- the page ----------------------------------------------------------------------------------------------------


def _results_title(results_dir):
    folder = Path(results_dir).resolve()
    return f"{folder.parent.name}/{folder.name}"


def _read_if_there(path):
    return read_json(path) if path.exists() else {}


def _body(out_dir, results_dir, dataset, cases, columns):
    summary, curves = _read_if_there(out_dir / "summary.json"), _read_if_there(out_dir / "curves.json")
    manifest = _read_if_there(results_dir / "manifest.json")
    charts = charts_of(cases, columns, curves)
    parts = [header("Segmentation report", _facts(results_dir, dataset, cases, manifest)), "<main>"]
    parts.append('<div class="overview">')
    if summary:
        definitions = f'<p class="note">Every figure is defined in {DEFINITIONS}.</p>'
        parts.append(f'<section aria-label="Figures"><h2>Figures</h2>{table_of(summary)}{definitions}</section>')
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
        described = describe_members(settings)
        facts += [("Sampling", described)] if described else []
        facts.append(("Fused by", settings["fuse"]))
        facts.append(("Seed", settings["seed"]))
    return facts
