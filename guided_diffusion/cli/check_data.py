"""What `medsegdiff check` does: it reads every case, prints tables and problems, and draws a contact sheet."""

from pathlib import Path

from tqdm import tqdm

from ..config.fields import named_by
from ..data.accounting import account
from ..data.batches import single_items
from ..data.check import findings
from ..data.check_report import class_lines, layout_lines, table, write_sheet
from ..data.inspection import Inspections, find_parts
from ..data.registry import recognised
from ..data.splits import loading_of
from ..data.volume_cache import chosen_folder, use_cache
from ..io.files import check_writable
from ..io.pictures import allow_megapixels
from ..io.storage import fetch_folder, is_remote
from ..runtime.console import console, counted


def run_check(options, data, given):
    """Read every case, print the tables and the problems, draw the contact sheet. Returns 1 with errors, else 0.

    options: `CheckOptions`. data: `DataOptions`. given: see `command_line.parse`.
    """
    out = Path(options.out_dir)
    allow_megapixels(data.max_megapixels)
    data_dir = fetch_folder(data.data_dir) if is_remote(data.data_dir) else data.data_dir
    name = recognised(data.data_name, data_dir)
    console().info(f"--data_name {name}")
    parts = find_parts(
        name, data_dir, options.image_size, named_by=named_by("data_name", given, ""), **loading_of(data)
    )
    check_writable(out)
    read_cases(parts, data)
    files = account([part.dataset for part in parts])
    for line in layout_lines(parts) + [f"note: {one}" for one in (files.note(), files.outside_line()) if one]:
        console().info(line)
    console().info("\n".join(["", table(parts), "", *class_lines(parts), ""]))
    found = findings(parts, files.error_lines())
    for finding in found:
        console().info(str(finding))
    sheet = out / "contact_sheet.png"
    if write_sheet(sheet, parts, options.num_shown, lambda units: tqdm(units, "drawing", dynamic_ncols=True)):
        console().info(f"contact sheet: {sheet}")
    errors = sum(finding.is_error for finding in found)
    console().info(f"{counted(errors, 'error')}, {counted(len(found) - errors, 'warning')}")
    return 1 if errors else 0


def read_cases(parts, data):
    """Read every case of the parts, with a progress bar, and add what was found to the parts' `inspections`."""
    loops = [(part, Inspections(part.dataset, data.group_key)) for part in parts]
    cache = chosen_folder(data.cache_dir, training=False)
    with tqdm(total=sum(len(cases) for _, cases in loops), desc="looking", unit="case", dynamic_ncols=True) as bar:
        for part, cases in loops:
            if cache is not None:
                use_cache(part.dataset, cache, workers=data.num_workers, skip_damaged=True)
            for found in single_items(cases, data.num_workers):
                part.inspections.append(found)
                bar.update()
