"""The curve of a training run as an SVG picture: loss and validation Dice, with marks where it was interrupted."""

from html import escape
from pathlib import Path

from .charts import Chart, rounded
from .errors import UserError
from .files import atomic_path, read_json_lines
from .sessions import interruptions, read_sessions

WIDTH, HEIGHT, TOP, GAP = 460, 280, 40, 20  # of each chart, of what is above them and between, in pixels
COLOURS = ("#1d5fa8", "#b4470f", "#23774a", "#7d3c98")
STYLE = (
    "text { font: 11px system-ui, sans-serif; fill: #59636e } .title { font-size: 13px; fill: #1b2127 } "
    ".label { font-size: 11px } .note { fill: #1b2127; font-size: 10.5px } polyline { fill: none; stroke-width: 1.6 } "
    ".grid { stroke: #e3e7eb } .axis { stroke: #98a3ad } .mark { stroke: #98a3ad; stroke-dasharray: 3 3 } "
    + " ".join(
        f".s{n} {{ stroke: {colour}; fill: {colour} }} polyline.s{n} {{ fill: none }}"
        for n, colour in enumerate(COLOURS, start=1)
    )
)
FIGURES = {"val_dice": "ensemble", "val_member_dice": "single members", "val_coarse_dice": "coarse mask"}


def write_curve(run_dir, path):
    """Draw the curve of the run in the folder `run_dir` to an SVG file, whole or not at all.

    Raises `UserError` where the folder has no log.
    """
    run_dir = Path(run_dir)
    rows = read_json_lines(run_dir / "log.jsonl")
    if not any(row.get("loss") is not None for row in rows):
        raise UserError(f"{run_dir}: has no log.jsonl with a loss in it; name the --out_dir of a training run")
    stops = interruptions(read_sessions(run_dir))
    parts = [_loss(rows, stops)]
    if any(row.get(name) is not None for row in rows for name in FIGURES):
        parts.append(_dice(rows, stops))
    width = len(parts) * (WIDTH + GAP) - GAP
    content = "".join(f'<g transform="translate({n * (WIDTH + GAP)} {TOP})">{part}</g>' for n, part in enumerate(parts))
    with atomic_path(path) as temporary:
        temporary.write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{HEIGHT + TOP}" '
            f'viewBox="0 0 {width} {HEIGHT + TOP}"><style>{STYLE}</style><rect width="100%" height="100%" '
            f'fill="white"/>{content}</svg>\n',
            encoding="utf-8",
        )


def _loss(rows, stops):
    steps, losses = _series(rows, "loss")
    low, high = min(losses), max(losses)
    return _panel("training loss", [("loss", steps, losses)], stops, steps, (low, high), log=low > 0)


def _dice(rows, stops):
    lines = [(label, *_series(rows, name)) for name, label in FIGURES.items()]
    lines = [line for line in lines if line[1]]
    values = [value for _, _, ys in lines for value in ys]
    low, _ = rounded(min(values), 1)
    return _panel("Dice on validation cases", lines, stops, _series(rows, "loss")[0], (low, 1), log=False)


def _series(rows, name):
    """(steps, values) of what the log has of a column."""
    there = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    return [step for step, _ in there], [value for _, value in there]


def _panel(title, lines, stops, steps, bounds, log):
    """One chart as SVG without a root of its own, with its title, its legend and the marks of interruptions.

    lines: (label, steps, values) of each; stops: see `sessions.interruptions`; steps: those of the whole run.
    """
    chart = Chart(title, (0, max(steps), "step"), (*bounds, ""), log=log, width=WIDTH, height=HEIGHT)
    for series, (_, xs, ys) in enumerate(lines, start=1):
        chart.line(xs, ys, series)
    for step, how in stops:
        chart.mark(step, how)
    keys, x = "", 46
    for series, (label, _, _) in enumerate(lines, start=1):
        keys += (
            f'<line x1="{x}" x2="{x + 16}" y1="-6" y2="-6" stroke-width="2" class="s{series}"/>'
            f'<text x="{x + 21}" y="-2">{escape(label)}</text>'
        )
        x += 34 + 6 * len(label)
    svg = chart.svg().replace("<svg ", f'<svg width="{WIDTH}" height="{HEIGHT}" ', 1)
    return f'<text class="title" x="46" y="-20">{escape(title)}</text>{keys if len(lines) > 1 else ""}{svg}'
