"""Lines, counts and tables on the console."""

import logging
import sys

from tqdm import tqdm

from .errors import visible


class _ConsoleHandler(logging.Handler):
    """Writes through tqdm, so that lines do not break a progress bar."""

    def emit(self, record):
        tqdm.write(visible(self.format(record), but="\n\t"), file=sys.stdout)
        sys.stdout.flush()


def console():
    """The program's logger; it prints plain lines to stdout."""
    log = logging.getLogger("medsegdiff")
    if not log.handlers:
        handler = _ConsoleHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
    return log


def quiet(silent):
    """Show only errors on the console, or everything again; with several processes only one prints."""
    console().setLevel(logging.ERROR if silent else logging.INFO)


def counted(number, noun):
    """A number with its noun, as "1 case" or "2 cases"; the plural ends in s."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(names, most=5):
    """Names joined by commas: all of them, or the first `most` as in "a, b and 3 more"."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def text_table(head, rows):
    """A table of plain text: the first column is aligned left, the others right, with two blanks between columns.

    head: the cells of the first line. rows: lists of cells of any type; short rows are padded with empty cells.
    """
    rows = [[str(cell) for cell in row] + [""] * (len(head) - len(row)) for row in [head, *rows]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
