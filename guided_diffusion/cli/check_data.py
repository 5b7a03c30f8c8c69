"""Look at a data set before training: what there is, what is wrong with it, and a picture of its cases with masks.

Prints a table of its splits. A line that begins with "error:" tells what training would trip over or what would make
its result worthless, "warning:" what may be intended. The exit status is 1 with errors, 0 without.
"""

from pathlib import Path

from tqdm import tqdm

from ..config.command_line import parse
from ..config.options import DataOptions
from ..config.sample_options import CheckOptions
from ..data.batches import looking_batches
from ..data.check import Looks, class_lines, find_parts, findings, table, told_layout, write_sheet
from ..data.registry import recognised
from ..data.splits import loading_of
from ..data.volume_cache import chosen_folder, use_cache
from ..io.files import check_writable
from ..io.storage import fetch_folder, is_remote
from ..runtime.console import console, counted
from ..runtime.errors import UserError, run_script

EXAMPLE = "python scripts/check_data.py --data_dir ISIC --out_dir checked"


def main(argv=None):
    """Parse the command line, look at every case, print and draw what was found. Returns 1 where there are errors."""
    (options, data), _ = parse(__doc__, [CheckOptions, DataOptions], argv, example=EXAMPLE)
    if not data.data_dir:
        raise UserError("--data_dir: is needed; it names the folder that holds the data")
    out = Path(options.out_dir)
    check_writable(out)
    data_dir = fetch_folder(data.data_dir) if is_remote(data.data_dir) else data.data_dir
    name = recognised(options.data_name, data_dir)
    console().info(f"--data_name {name}")
    parts = find_parts(name, data_dir, **loading_of(data))
    look(parts, data)
    for line in told_layout(parts):
        console().info(line)
    console().info("\n".join(["", table(parts), "", *class_lines(parts), ""]))
    found = findings(parts)
    for finding in found:
        console().info(str(finding))
    sheet = out / "contact_sheet.png"
    if write_sheet(sheet, parts, options.num_shown, lambda units: tqdm(units, "drawing", dynamic_ncols=True)):
        console().info(f"contact sheet: {sheet}")
    errors = sum(finding.is_error for finding in found)
    console().info(f"{counted(errors, 'error')}, {counted(len(found) - errors, 'warning')}")
    return 1 if errors else 0


def look(parts, data):
    """Fill the parts with the looks at their cases, with a bar."""
    loops = [(part, Looks(part.dataset, data.group_key)) for part in parts]
    cache = chosen_folder(data.cache_dir, training=False)
    with tqdm(total=sum(len(looks) for _, looks in loops), desc="looking", unit="case", dynamic_ncols=True) as bar:
        for part, looks in loops:
            if cache is not None:
                use_cache(part.dataset, cache, workers=data.num_workers, skip_damaged=True)
            for found in looking_batches(looks, data.num_workers):
                part.looks.append(found)
                bar.update()


if __name__ == "__main__":
    run_script(main)
