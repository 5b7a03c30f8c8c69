"""Text from strangers in files for people: no Markdown or spreadsheet acts on it, and places show their last name."""

import os
import re

from .storage import is_remote

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # how a spreadsheet's formula begins
QUOTE = "'"  # before a cell of a spreadsheet: the rest is text
ABSOLUTE = re.compile(r"(?<![\w.:/\\-])(?:(?:[a-z][a-z0-9+.-]*:/)?/|[A-Za-z]:\\|~/)[^\s,;`'\"()<>|]*[^\s,;:.`'\"()<>|]")
ACTING = re.compile(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)")  # what Markdown acts on inside a line, beside HTML
LINKED = (("://", "&#58;//"), ("www.", "www&#46;"), ("@", "&#64;"))  # what GitHub makes a link of


# ---- tables --------------------------------------------------------------------------------------------------------


def csv_cell(text):
    """Text for a cell of a CSV file, with an apostrophe in front where a spreadsheet would take it for a formula."""
    begins = text.lstrip(" ")[:1]
    return QUOTE + text if begins and begins in (*FORMULA, QUOTE) else text


def csv_text(cell):
    """The text of a cell that `csv_cell` wrote."""
    return cell[1:] if cell[:1] == QUOTE and csv_cell(cell[1:]) == cell else cell


# ---- Markdown ------------------------------------------------------------------------------------------------------


def markdown_text(value):
    """A value as text in a line of Markdown: no HTML, link, emphasis or table comes of it."""
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = ACTING.sub(lambda match: "\\" + match[0], text)
    for acting, inert in LINKED:
        text = text.replace(acting, inert)
    return text


def markdown_code(value):
    """A value in a line of Markdown, as code if nothing in it acts, else as text."""
    text = str(value)
    is_plain = re.fullmatch(r"[\w./:+ -]+", text) and text == markdown_text(text).replace("\\_", "_")
    return f"`{text}`" if is_plain else markdown_text(text)


# ---- places --------------------------------------------------------------------------------------------------------


def place_name(path):
    """The last name of a path or URL, since those above it may be private: "Train" of /home/anna/ISIC/Train.

    The class of a user's own loader stays: "my_loader.py:Polyps".
    """
    path = str(path)
    if not path or path in (".", ".."):
        path = os.path.abspath(path) if path else path
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or path


def is_place(value):
    """Whether a value is an absolute path, or a URL."""
    is_text = isinstance(value, str)
    return is_text and (os.path.isabs(value) or is_remote(value) or bool(re.match(r"[A-Za-z]:\\|~/|\.\./", value)))


def with_short_places(text, *known):
    """A text with the last names of the absolute paths and URLs in it. known: such paths, which may hold blanks."""
    for path in sorted({str(path) for path in known if len(str(path)) > 1}, key=len, reverse=True):
        text = text.replace(path, place_name(path))
    return ABSOLUTE.sub(lambda match: place_name(match[0]), text)
