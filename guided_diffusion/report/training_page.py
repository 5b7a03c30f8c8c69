"""The page of a training run: training.html, with curves and validation pictures, rewritten during training."""

import io
import re
from html import escape
from pathlib import Path
from typing import Annotated

import msgspec
from PIL import Image

from ..io.escaping import is_place, place_name
from ..io.texts import read_json_lines
from ..runtime.errors import UserError
from .charts import Chart, rounded
from .page import data_uri, facts_list, figure, header, link_to, tiles, write_page

# Of each chart: title, y axis, columns of the log, and whether the axis may be logarithmic.
CURVES = (
    ("Loss", "loss", ("loss", "mask", "coarse", "vb"), True),
    ("Validation log loss", "nats per pixel", ("val_log_loss", "val_coarse_log_loss"), True),
    ("Expected over true size", "ratio", ("val_volume_ratio", "val_coarse_volume_ratio"), False),
    ("GED² gained by the diffusion", "GED²", ("val_health",), False),
    ("Validation Dice", "Dice", ("val_dice", "val_member_dice", "val_coarse_dice", "val_agreement"), False),
    ("Learning rate", "rate", ("lr",), False),
    ("Gradient norm, before clipping", "norm", ("grad_norm",), True),
    ("Waiting for data", "share of time", ("waiting",), False),
)
# A run of pictures measures areas, one of volumes volumes: "size" is both.
NEWEST = (  # label, column of the log; of the line of main figures
    ("Validation Dice", "val_dice"),
    ("Expected / true size", "val_volume_ratio"),
    ("Training loss", "loss"),
)
FACTS = (  # label, group of options, option
    ("Data", "data", "data_dir"),
    ("Variant", "model", "version"),
    ("Image size", "model", "image_size"),
    ("Batch", "train", "batch_size"),
    ("Learning rate", "train", "lr"),
    ("Seed", "train", "seed"),
)
# Options that are paths.
PLACES = ("data_dir", "val_dir", "out_dir", "resume_checkpoint", "init_from", "cache_dir", "data_name")
LogRow = dict[str, Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)] | None]  # "step" and figures, by name
PICTURE = re.compile(r"step(\d+)\.png")


def write_training_page(folder, config, last_step, best=None, stage=0):
    """Write training.html in a run's folder, whole or not at all, from its log.jsonl and validation/step<step>.png.

    config: the run's option values, as in a checkpoint. last_step: the run's last step. best: the
    `Checkpoint.validation` of best.pt, or None. stage: the steps of the first stage, 0 without stages. The page holds
    the newest picture and loads earlier ones from the folder when they are chosen. Returns the page's path.
    """
    folder = Path(folder)
    rows, _ = read_log(folder)
    step = rows[-1]["step"] if rows else 0
    pictures = validation_pictures(folder / "validation", step)
    charts = "".join(_chart(rows, *curve, stage) for curve in CURVES)
    facts = [(name, _shown(key, config[group][key])) for name, group, key in FACTS if key in config.get(group, {})]
    curves = f'<div class="charts wide">{charts}</div>'
    if not charts:
        curves = '<p class="note">Nothing is logged yet; see --log_interval.</p>'
    log = link_to(folder / "log.jsonl", folder)
    log = f'<p class="note">As a file: <a href="{log}">log.jsonl</a></p>' if log else ""
    parts = {
        "validation": _gallery(pictures),
        "curves": f'<section aria-labelledby="curves"><h2 id="curves">Curves</h2>{curves}{log}</section>',
        "options": '<section aria-labelledby="options"><h2 id="options">Options</h2>'
        f"{facts_list(facts)}{_option_table(config)}</section>",
    }
    parts = {name: part for name, part in parts.items() if part}
    head = header("Training", folder.resolve().name, [(name.capitalize(), f"#{name}") for name in parts])
    line = tiles(_headline(rows, step, last_step, best), "Main figures")
    body = "\n".join([head, "<main>", line, *parts.values(), "</main>"])
    path = folder / "training.html"
    data = {"pictures": [[number, f"validation/{picture.name}"] for number, picture in pictures]}
    write_page(path, f"Training: {folder.resolve().name}", body, scripts=("theme.js", "training.js"), data=data)
    return path


def _headline(rows, step, last_step, best):
    """The line of main figures: a list of (label, value, note), the newest of each figure that was logged."""
    line = [("Step", f"{step} of {last_step}", "")]
    for label, column in NEWEST:
        logged = [(row["step"], row[column]) for row in rows if row.get(column) is not None]
        if logged:
            line.append((label, f"{logged[-1][1]:.4g}", f"at step {logged[-1][0]}"))
    if best:
        line.insert(1, ("Best validation log loss", f"{best['log_loss']:.4f}", f"at step {best['step']} (best.pt)"))
    return line


def read_log(folder):
    """(rows, number) of a run's log.jsonl: its rows as dicts of numbers and None with a "step", and the number of lines
    that are no such row and are left out."""
    values = read_json_lines(Path(folder) / "log.jsonl")
    rows = [row for row in values if _is_log_row(row)]
    return rows, len(values) - len(rows)


def _is_log_row(row):
    try:
        msgspec.convert(row, LogRow)
    except (msgspec.ValidationError, RecursionError):
        return False
    return isinstance(row.get("step"), int)


def validation_pictures(folder, last_step):
    """(step, path) of each validation picture up to a step, in order; later ones are from before a resume."""
    found = [(int(match[1]), path) for path in folder.glob("*.png") if (match := PICTURE.fullmatch(path.name))]
    return sorted((step, path) for step, path in found if step <= last_step)


def _chart(rows, title, axis, columns, log, stage):
    """The HTML of a chart of the columns that the log has; "" where it has none."""
    lines = []
    for column in columns:
        points = [(row["step"], row[column]) for row in rows if row.get(column) is not None]
        if points:
            lines.append((column, *zip(*points, strict=True)))
    values = [value for _, _, ys in lines for value in ys if not log or value > 0]  # a loss of 0 has no logarithm
    if not values:
        return ""
    log = log and max(values) > 20 * min(values)  # within a decade a logarithmic axis has few labels
    bounds = (min(values), max(values)) if log else rounded(min(0, *values), max(values))
    if axis == "Dice":
        bounds = (0, 1)
    last = max(steps[-1] for _, steps, _ in lines)
    chart = Chart(f"{title} over the steps", (0, max(last, 1), "step"), (*bounds, axis), log=log)
    for series, (column, steps, ys) in enumerate(lines, start=1):
        chart.line(steps, ys, series, column.removeprefix("val_").replace("_", " ") if len(lines) > 1 else "")
    if 0 < stage < last:
        chart.mark(stage, "the diffusion begins")
    return f'<div class="chart">{figure(title, chart.svg())}</div>'


def _gallery(pictures):
    """The newest validation picture, with a slider over the earlier ones."""
    if not pictures:
        return ""
    step, path = pictures[-1]
    try:
        source = _embedded(path)
    except UserError as error:
        return f'<section id="validation"><h2>Validation</h2><p class="note">{escape(str(error))}</p></section>'
    hidden = "" if len(pictures) > 1 else " hidden"
    return (
        '<section aria-labelledby="validation"><h2 id="validation">Validation</h2>'
        f'<label id="steps"{hidden}><output id="step">Step {step}</output><input type="range" id="pick" min="0" '
        f'max="{len(pictures) - 1}" value="{len(pictures) - 1}" step="1"></label>'
        f'<div class="scroll"><img id="picture" alt="Validation cases: image, truth, members and ensemble" '
        f'src="{source}"></div><p class="note" id="missing" hidden></p></section>'
    )


def _embedded(path):
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            data = io.BytesIO()
            picture.convert("RGB").save(data, format="JPEG", quality=85, subsampling=0)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path.parent.name}/{path.name}: cannot be read ({type(error).__name__})") from error
    return data_uri(data.getvalue(), "jpeg")


def _shown(name, value):
    """An option's value for a page that others may see: of a path its last name."""
    return place_name(value) if name in PLACES or is_place(value) else value


def _option_table(config):
    """All options of the run, in a closed details element."""
    items = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(str(_shown(name, value)))}</td></tr>'
        for group in ("data", "model", "diffusion", "train", "device")
        for name, value in config.get(group, {}).items()
    )
    return f'<details><summary>All options</summary><table class="options"><tbody>{items}</tbody></table></details>'
