"""Tables of plain text, for the console."""


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
