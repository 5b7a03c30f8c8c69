"""The gallery of a report: a card for each case, as HTML that shows the basics without a script, and its legend."""

import re
from html import escape

from ..io.drawing import MASK_COLOUR, MEMBER_COLOURS, TRUTH_COLOUR, class_colour
from .figures import figure_label
from .page import asset, swatch

WORSE_HIGH = re.compile(
    r"hd95|assd|(.*_)?(ece|brier|log_loss|ged2)|volume_(difference|error|spread)|.*(false|betti\d_error|vi_\w+)"
)  # prefixes
FIRST = ("dice", "expected_dice", "agreement")  # the first of these that exists is the initial order of cases
WITHOUT_TRUTH = (
    "There is no truth to compare with. Cases are sorted by expected Dice, which assumes that the probability is "
    "calibrated. The most uncertain cases come first."
)
ON_CARD = 2  # figures on a card
END = 14  # characters at the end of a name that stay when it is cut; cases of one data set often differ only there


def columns_of(cases, size="volume", unit=""):
    """The figures to sort by: [{"key", "label", "worst": "low" or "high"}]; the first is the initial order.

    size: "area" or "volume"; unit: of distances. See `figures.figure_label`.
    """
    keys = dict.fromkeys(key for case in cases for key in case["scores"])
    first = [key for key in FIRST if key in keys]
    return [
        {"key": key, "label": figure_label(key, size, unit), "worst": "high" if WORSE_HIGH.match(key) else "low"}
        for key in (*first, *(key for key in keys if key not in first))
    ]


def class_colours(names):
    """[[name, colour]] of several classes; [] with a single class."""
    return [] if len(names) == 1 else [[name, _hex(class_colour(k))] for k, name in enumerate(names)]


def drawn_colours():
    """{"mask", "truth", "members"}: the colours of the outlines of a single class, "members" a list."""
    return {"mask": _hex(MASK_COLOUR), "truth": _hex(TRUTH_COLOUR), "members": [_hex(one) for one in MEMBER_COLOURS]}


def gallery_html(cases, columns, class_names, source_of, notes=()):
    """The section of the cases, the worst first.

    source_of(case): the address of a case's card. notes: lines of text above the cards.
    """
    cards = "\n".join(
        _card(index, cases[index], columns, source_of(cases[index])) for index in initial_order(cases, columns)
    )
    notes = [*notes] if any("truth" in case["layers"] for case in cases) else [*notes, WITHOUT_TRUTH]
    notes = "".join(f'<p class="note">{escape(note)}</p>\n' for note in notes)
    return asset("gallery.html").format(legend=_legend(cases, class_names), cards=cards, notes=notes)


def initial_order(cases, columns):
    """The indices of the cases, the worst by the first column first, then by name; cases without a value are last."""

    def rank(index):
        value = cases[index]["scores"].get(columns[0]["key"]) if columns else None
        sign = -1 if columns and columns[0]["worst"] == "high" else 1
        return value is None, sign * (value or 0), _natural(cases[index]["name"])

    return sorted(range(len(cases)), key=rank)


def _natural(name):
    """A key that sorts numbers in names by their value."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part.lower()) for part in re.split(r"(\d+)", name) if part
    ]


def _card(index, case, columns, source):
    height, width = case["card_size"]
    shown = [
        f"{one['label']} {_card_number(case['scores'][one['key']])}" for one in columns if one["key"] in case["scores"]
    ]
    values = shown[:ON_CARD] + ([f"{case['empty']} empty"] if case["empty"] else [])
    values += [f"{case['depth']} slices"] if case["indices"][0] is not None else []
    name = case["name"]
    start, end = (name[:-END], name[-END:]) if len(name) > 2 * END else (name, "")
    tiles = ["image", "mask" + (" and truth" if "truth" in case["layers"] else "")]
    tiles += ["members"] if "member 0" in case["layers"] else []
    tiles += ["uncertainty"] if case["slices"][0]["maps"] else []
    return (
        f'<div role="listitem"><a class="card" data-index="{index}" href="{case["file"] or "#cases"}">'
        f'<img src="{source}" alt="{", ".join(tiles)}" width="{width}" height="{height}" loading="lazy" '
        f'decoding="async"><span class="line"><span class="name" title="{escape(name, quote=True)}">'
        f'<span class="start">{escape(start)}</span><span>{escape(end)}</span></span> '
        f'<span class="values">{escape("  ".join(values))}</span></span></a></div>'
    )


def _card_number(value):
    if float(value).is_integer():
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def _legend(cases, class_names):
    """What the lines and colours on the cards mean, as HTML."""
    layers, classes = {layer for case in cases for layer in case["layers"]}, class_colours(class_names)
    keys = [(colour, name) for name, colour in classes] or [(_hex(MASK_COLOUR), "mask")]
    if not classes and "truth" in layers:
        keys.append((_hex(TRUTH_COLOUR), "truth"))
    items = [f"<span>{swatch(colour)}{escape(text)}</span>" for colour, text in keys]
    items += ["<span>dashed: truth</span>"] if classes and "truth" in layers else []
    if "member 0" in layers and not classes:
        marks = "".join(swatch(_hex(colour)) for colour in MEMBER_COLOURS[: sum("member" in one for one in layers)])
        items.append(f"<span>{marks}members</span>")
    if any(case["slices"][0]["maps"] for case in cases):
        items.append('<span>uncertainty 0<span class="ramp heat"></span>0.5</span>')
    return "".join(items)


def _hex(colour):
    return "#{:02x}{:02x}{:02x}".format(*colour)
