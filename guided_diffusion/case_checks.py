"""Whether the cases that a loader found can be told apart, written, and trained on."""

from pathlib import Path

from .errors import UserError
from .files import check_encodable


def check_cases(dataset):
    """Raise `UserError` for a case of a `data.SegmentationDataset` whose name is another's or no file name, or, where
    masks are needed, which has none."""
    seen = {}
    for case in dataset.cases:
        check_encodable(*case.images, case.name)
        if case.name in seen:
            raise UserError(
                f"{case.images[0]}: its case name {case.name!r} is also that of {seen[case.name]}; "
                "rename one or keep only one of them"
            )
        if not case.name or Path(case.name).name != case.name or case.name.startswith("."):
            raise UserError(f"{case.images[0]}: its case name {case.name!r} cannot be a file name; rename it")
        if dataset.need_masks and not case.masks:
            told = f"{case.images[0]}: has no mask; add {dataset.expected_mask(case)} or remove the image"
            raise UserError(told + _others_lacking(dataset))
        seen[case.name] = case.images[0]


def _others_lacking(dataset):
    """What is to be added where more than one case has no mask."""
    count, lacking = len(dataset.cases), sum(not case.masks for case in dataset.cases)
    if lacking == count > 1:
        return f" (none of {count} has one: is {dataset.data_dir} the folder that holds the masks too?)"
    return f" ({lacking} of {count} have none; python scripts/check_data.py names them)" if lacking > 1 else ""
