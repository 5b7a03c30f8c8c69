"""The report of a results folder: report.html, with figures, charts and a gallery of all cases."""

import math
import os
import re
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np
from tqdm import tqdm

from ..data.classes import MEAN
from ..data.truth import raters_of
from ..evaluation.evaluate import predictions_of
from ..evaluation.summary import DEFINITIONS
from ..evaluation.summary_file import read_curves, read_summary
from ..evaluation.summary_table import member_lines, miss_lines
from ..inference.manifest import read_manifest
from ..inference.plan import describe_augmentation, describe_masks, describe_members
from ..io.escaping import csv_text, place_name
from ..io.files import atomic_path
from ..io.texts import read_csv
from ..runtime.console import console, counted, listed
from ..runtime.errors import UserError, reason_of
from .case_pictures import slices_of
from .figures import charts_of, patients_of, sets_table, sizes_table, table_of, with_sure_intervals
from .gallery import class_colours, columns_of, drawn_colours, gallery_html
from .headline import class_table, headline
from .model_card import shown_checkpoint
from .page import asset, data_uri, facts_list, header, link_to, tiles, write_page

PICTURE_NAMES = re.compile(r"(\d+_)?(card|image)\.jpg|(\d+_)?(lines|maps)\.png")
EMBEDDED = 12 * 2**20  # bytes of pictures that the page itself may hold; it can then still be mailed
FILES = {  # beside the page, with what they hold
    "metrics.csv": "the figures of each case",
    "summary.json": "the figures over all cases",
    "curves.json": "the points of the charts",
    "manifest.json": "the settings of the run",
}
SCORE_DIGITS = 5  # significant digits of a case's figures in the page


def write_report(results_dir, dataset, units, out_dir=None, read_raters=raters_of, progress=None):
    """Write report.html for the results in `results_dir` to `out_dir` (default: the same), whole or not at all.

    units: the `cases.Unit`s to show; units without a prediction are left out, and so are those that cannot be read,
    which the page names. The figures come from metrics.csv, summary.json and curves.json in `out_dir`, where these
    exist. Pictures of more than `EMBEDDED` bytes in all go to report_files/ beside the page, which loads them when they
    are shown. read_raters: replaces `raters_of`. progress: wraps the list of units, such as tqdm. Returns the page's
    path.
    """
    results_dir, out_dir = Path(results_dir), Path(out_dir or results_dir)
    predictions = predictions_of(results_dir, dataset, units)
    scores, (summary, curves) = read_scores(out_dir / "metrics.csv"), _summaries(out_dir)
    pictures, cases, failed = Pictures(out_dir / "report_files"), [], {}
    for unit in progress(units) if progress else units:
        try:
            slices = slices_of(predictions, dataset, unit, read_raters)
        except (UserError, OSError) as error:
            failed[unit.name] = reason_of(error)
            continue
        if slices is not None:
            file = link_to(predictions.mask_file(unit.name, unit.is_volume), out_dir)
            cases.append(_case(unit, slices, pictures, scores.get(unit.name) or slices.scores) | {"file": file})
    notes = _notes(failed, len(cases))
    size = "volume" if units and units[0].is_volume else "area"
    columns, manifest = columns_of(cases, size, summary.get("hd95_unit", "")), read_manifest(results_dir)
    path, title = out_dir / "report.html", f"Segmentation report: {_results_title(results_dir)}"
    gallery = gallery_html(cases, columns, dataset.class_names, lambda case: pictures.sources(case["card"]), notes)
    facts = _facts(results_dir, dataset, cases, manifest)
    body = _body(out_dir, summary, curves, cases, columns, size, gallery, facts, dataset.class_names)
    write_page(
        path,
        title,
        body,
        scripts=("theme.js", "report.js"),
        data=_script_data(cases, columns, dataset, pictures, manifest),
    )
    pictures.remove_others()
    return path


def try_report(*arguments, **keywords):
    """`write_report` with a progress bar. A `UserError` becomes a warning: the masks and tables are already written.

    Returns the page's path, or None.
    """
    try:
        return write_report(*arguments, **keywords, progress=lambda units: tqdm(units, desc="report", unit="case"))
    except UserError as error:
        console().warning(f"warning: no report.html: {error}")
        return None


def _summaries(folder):
    """summary.json and curves.json of a folder, {} for each that is not there."""
    files = {"summary.json": read_summary, "curves.json": read_curves}
    return [read(folder / name) if (folder / name).exists() else {} for name, read in files.items()]


def _notes(failed, readable):
    """The page's lines about the cases that could not be read, after a warning; an error where none could.

    failed: their reasons by name. readable: the number of the others.
    """
    if not failed:
        return []
    first, number = next(iter(failed.values())), counted(len(failed), "case")
    if not readable:
        raise UserError(f"none of {number} could be read; the first: {first}" if len(failed) > 1 else first)
    console().warning(f"warning: report.html lacks {number} that could not be read: {listed(list(failed))}; {first}")
    return [f"{number} could not be read: {listed(list(failed))}"]


class Pictures:
    """The pictures of a page: embedded in it, or all written to `folder` once they exceed `limit` bytes."""

    def __init__(self, folder, limit=None):
        self.folder, self.limit = Path(folder), EMBEDDED if limit is None else limit
        self.in_memory, self.size, self.written = {}, 0, set()
        if self.folder.is_symlink():
            raise UserError(f"{self.folder}: is a link, and pictures would be written where it leads; remove it")

    @property
    def is_embedded(self):
        """Whether the pictures are part of the page."""
        return self.size <= self.limit

    def add(self, case, name, data):
        """Add a picture's bytes; returns its key for `sources`, CASE/NAME. name: ends in .jpg or .png."""
        key = f"{case}/{name}"
        self.in_memory[key] = data
        self.size += len(data)
        if not self.is_embedded:
            for waiting, content in self.in_memory.items():
                self._write(waiting, content)
            self.in_memory.clear()
        return key

    def _write(self, key, data):
        with atomic_path(self.folder / key) as temporary:
            temporary.write_bytes(data)
        self.written.add(key)

    def sources(self, keys):
        """The pictures' addresses in the page, data URIs or relative paths. keys: a key, or a dict or list of keys."""
        if isinstance(keys, dict):
            return {name: self.sources(key) for name, key in keys.items()}
        if isinstance(keys, list):
            return [self.sources(key) for key in keys]
        if keys is None:
            return None
        if self.is_embedded:
            return data_uri(self.in_memory[keys], "png" if keys.endswith(".png") else "jpeg")
        return quote(f"{self.folder.name}/{keys}")

    def remove_others(self):
        """Remove the pictures of an earlier page from the folder; call it after the new page is written."""
        for folder, _, names in os.walk(self.folder, topdown=False):
            for name in names:
                path = Path(folder, name)
                if PICTURE_NAMES.fullmatch(name) and path.relative_to(self.folder).as_posix() not in self.written:
                    path.unlink()
            if not os.listdir(folder):
                os.rmdir(folder)


def read_scores(path):
    """metrics.csv as {case: {figure: number, "empty": text}}, with several classes the means over classes."""
    if not path.exists():
        return {}
    lines, rows = [fields for _, fields in read_csv(path)], {}
    for fields in lines[1:]:
        row = dict(zip(lines[0], map(csv_text, fields), strict=False))
        rows.setdefault(row.get("name", ""), []).append(row)
    return {name: _case_scores(own) for name, own in rows.items()}


def _case_scores(rows):
    """The scores of a case from its rows in metrics.csv: those of the row of means, else the means over rows."""
    rows_used = [row for row in rows if row.get("class") == MEAN] or rows
    scores = {}
    for key in rows_used[0]:
        values = [number for number in (_finite_number(row.get(key)) for row in rows_used) if number is not None]
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


def _case(unit, shown, pictures, scores):
    """A case for the page, with the keys of its pictures. shown: its `CaseSlices`."""
    areas = [view.masks.sum() for _, view in shown.views]
    largest = int(np.argmax(areas)) if any(areas) else len(areas) // 2
    slices = []
    for k, view in shown.views:
        prefix = "" if k is None else f"{k:03d}_"
        lines, shape = view.outlines()
        maps = view.maps()
        slices.append(
            {
                "image": pictures.add(unit.name, f"{prefix}image.jpg", view.picture()),
                "lines": pictures.add(unit.name, f"{prefix}lines.png", lines),
                "maps": maps and pictures.add(unit.name, f"{prefix}maps.png", maps),
            }
        )
    first = shown.views[largest][1]
    card, card_size = first.card()
    return {
        "name": unit.name,
        "slices": slices,
        "indices": [k for k, _ in shown.views],
        "depth": len(unit.cases),
        "first": largest,
        "layers": first.layers(),
        "size": list(shape),
        "card": pictures.add(unit.name, "card.jpg", card),
        "card_size": card_size,
        "share": shown.share,
        "scores": {key: value for key, value in scores.items() if key != "empty"},
        "empty": scores.get("empty", "" if shown.share else "mask"),
    }


def _script_data(cases, columns, dataset, pictures, manifest):
    """What report.js needs; it reads the cards from the page. A case's scores are in the order of the columns."""
    kept = ("name", "indices", "depth", "first", "layers", "size")
    listed_cases = []
    for case in cases:
        scores = [case["scores"].get(column["key"]) for column in columns]
        scores = [value if value is None else float(f"{value:.{SCORE_DIGITS}g}") for value in scores]
        parts = {"slices": pictures.sources(case["slices"]), "scores": scores}
        listed_cases.append({key: case[key] for key in kept} | parts)
    members = manifest.get("settings", {}).get("num_ensemble")
    spread = "√(p (1 − p))" if members in (0, 1) else "standard deviation of the members"
    return {
        "cases": listed_cases,
        "columns": columns,
        "classes": class_colours(dataset.class_names),
        "colours": drawn_colours(),
        "uncertainty": spread,
    }


# ---- the page ----------------------------------------------------------------------------------------------------


def _results_title(results_dir):
    folder = Path(results_dir).resolve()
    return f"{folder.parent.name}/{folder.name}"


def _body(out_dir, summary, curves, cases, columns, size, gallery, facts, class_names):
    patients = patients_of(summary) if summary else len(cases)
    summary, curves = (with_sure_intervals(part, patients) for part in (summary, curves))
    charts = charts_of(cases, columns, curves, size)
    files = {name: link_to(out_dir / name, out_dir) for name in FILES}
    parts = {"cases": gallery, "classes": class_table(summary, class_colours(class_names), size)}
    parts["figures"] = _figures_section(summary, size)
    grid = f'<div class="charts">{"".join(charts)}</div>'
    parts["charts"] = f'<section aria-labelledby="charts"><h2 id="charts">Charts</h2>{grid}</section>' if charts else ""
    parts["run"] = _run_section(facts, files)
    links = [(name.capitalize(), f"#{name}") for name, part in parts.items() if part]
    head = header("Segmentation report", f"{dict(facts)['Results']}, data {dict(facts)['Data']}", links)
    line = tiles(headline(summary, cases, size), "Main figures")
    overview = f'<div class="overview">{parts["figures"]}{parts["charts"]}</div>'
    content = [head, "<main>", line, parts["cases"], parts["classes"], overview, parts["run"], "</main>"]
    return "\n".join([*content, asset("case.html")])


def _figures_section(summary, size):
    if not summary:
        return ""
    note = f'<p class="note">Every figure is defined in {DEFINITIONS}.</p>'
    tables = table_of(summary, size) + sets_table(summary) + sizes_table(summary)
    tables += "".join(f'<p class="note">{escape(line)}.</p>' for line in miss_lines(summary) + member_lines(summary))
    return f'<section aria-labelledby="figures"><h2 id="figures">Figures</h2>{tables}{note}</section>'


def _run_section(facts, files):
    """The settings of the run, and links to the files beside the page."""
    links = "".join(
        f'<li><a href="{address}">{name}</a>: {FILES[name]}</li>' for name, address in files.items() if address
    )
    links = f'<ul class="files">{links}</ul>' if links else ""
    return f'<section aria-labelledby="run"><h2 id="run">Run</h2>{facts_list(facts)}{links}</section>'


def _facts(results_dir, dataset, cases, manifest):
    settings = manifest.get("settings", {})
    data = place_name(Path(dataset.data_dir).resolve())
    facts = [("Results", _results_title(results_dir)), ("Data", data), ("Cases", len(cases))]
    if len(dataset.class_names) > 1:
        facts.append(("Classes", ", ".join(dataset.class_names)))
    if manifest.get("checkpoint"):
        files = shown_checkpoint(manifest, results_dir).split(",")
        steps = [manifest.get("step"), *(one["step"] for one in manifest.get("further", ()))]
        shown = "; ".join(f"{file}, step {step}" for file, step in zip(files, steps, strict=False))
        facts.append(("Checkpoint" if len(files) == 1 else "Checkpoints", shown))
    if {"num_ensemble", "sampler", "timesteps"} <= settings.keys():
        facts.append(("Members", describe_members(settings)))
        described = describe_augmentation(settings)
        facts += [("Test-time augmentation", described)] if described else []
        masks = describe_masks(settings)
        facts += [("Masks", masks)] if masks else []
    facts += [(label, settings[key]) for label, key in (("Fused by", "fuse"), ("Seed", "seed")) if key in settings]
    return facts
