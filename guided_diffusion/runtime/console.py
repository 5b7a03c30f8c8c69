"""What a run says while it works: lines on the console, and log.jsonl and TensorBoard curves in the run's folder."""

import logging
import sys

from tqdm import tqdm


class _ConsoleHandler(logging.Handler):
    """Writes through tqdm, so that a line does not tear a progress bar."""

    def emit(self, record):
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def console():
    """The program's logger, with its console handler in place."""
    log = logging.getLogger("medsegdiff")
    if not log.handlers:
        handler = _ConsoleHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
    return log


def quiet(silent):
    """Let the console show nothing but errors, or all again: of several processes one speaks."""
    console().setLevel(logging.ERROR if silent else logging.INFO)


def counted(number, noun):
    """ "1 case", "2 cases": a number with its noun, whose plural ends in s."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(names, most=5):
    """ "a, b and 3 more": names, of more than `most` the first and how many there are beside."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


# ---- Tables of plain text, for the console --------------------------------------------------------------------------


def text_table(head, rows):
    """Columns of text, the first to the left and the others to the right, each as wide as its widest cell and two
    blanks apart.

    head: the cells of the first line; rows: lists of cells of any type, of which short ones are filled up.
    """
    rows = [[str(cell) for cell in row] + [""] * (len(head) - len(row)) for row in [head, *rows]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
