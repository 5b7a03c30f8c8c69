"""Masks that do not fit their image, by its EXIF tag, or each other, by the value of their foreground or palettes."""

from contextlib import suppress

from ..io.masks import classes_advice, differ
from ..io.pictures import QUARTERS, TURNS, noted_masks, turning_tag
from ..runtime.errors import UserError
from .cases import spread_indices

COMPARED = 16  # masks, spread over the data, among which one with a foreground is looked for


def mixed_advice(foregrounds):
    """What to do about masks of one class whose foregrounds are written in several ways, such as "1" and "2"."""
    if all(text[0].isdigit() for text in foregrounds):
        return "are they slices of a label map? " + classes_advice(sorted(int(float(text)) for text in foregrounds))
    return "are they slices of a label map in colours? save it in grey or with a palette, and name classes by --classes"


def check_turns(case, note, size):
    """Raise `UserError` where EXIF tags turn an image and not its mask, or the reverse, unless only one reading fits.

    note: the `MaskNote` of a mask of `size` (H, W). A mask without a tag that fits the image as shown, and would not
    fit it as stored, was drawn on the image as shown.
    """
    if note.path in case.images:
        return
    tag, shown = turning_tag(case.images[0])
    if tag == note.turn:
        return
    turned, other, number = (case.images[0], note.path, tag) if tag != 1 else (note.path, case.images[0], note.turn)
    advice = (
        "the mask may lie over the image as stored or as shown; save the image as it is shown, without the tag "
        "(exiftran -ai, PIL.ImageOps.exif_transpose), or remove the tag if the mask was drawn on the stored pixels "
        "(exiftool -Orientation=)"
    )
    if note.turn == 1 and tag in QUARTERS and shown[0] != shown[1]:
        if tuple(size) == tuple(shown):
            return
        if tuple(size) != tuple(shown[::-1]):
            return  # it fits neither way, which is another message
        advice = "the mask has the size of the image as stored; remove the tag (exiftool -Orientation=)"
    how = f"an EXIF tag (orientation {number}: shown {TURNS[number][0]})"
    raise UserError(f"{turned}: has {how}, and {other} has not the same: {advice}")


def find_foreground(dataset):
    """The `pictures.MaskNote` of the mask with whose foreground that of all others is compared, or None.

    It is the first with something marked among a few spread over the data, so that it is the same in every process and
    in any order of reading. Slices of a label map, some with 1 and some with 2, are no masks of one class.
    """
    for case in _compared_cases(dataset):
        with suppress(UserError, OSError), noted_masks() as notes:
            dataset.load_mask(case, compare=False)
            if marked := [note for note in notes if note.foreground]:
                return marked[0]
    return None


def check_foreground(notes, usual):
    """Raise `UserError` if the foreground of a mask has another value than that of the mask `usual`.

    notes: `pictures.MaskNote`s. usual: another, or None.
    """
    for note in notes:
        if note.foreground and usual and differ(note.foreground, usual.foreground):
            raise UserError(
                f"{note.path}: its foreground is {note.foreground}, that of {usual.path} is {usual.foreground}; "
                f"{mixed_advice([note.foreground, usual.foreground])}"
            )


def find_palette(dataset):
    """{colour: (number, file)} in the palettes of a few label maps spread over the data; {} without palettes."""
    found = {}
    for case in _compared_cases(dataset):
        with suppress(UserError, OSError), noted_masks() as notes:
            dataset.read_mask(case)
            for note in notes:
                for number, colour in note.colours.items():
                    found.setdefault(colour, (number, note.path))
    return found


def check_palettes(notes, usual):
    """Raise `UserError` for a label map whose palette shows a colour for another number than that of others.

    notes: `pictures.MaskNote`s. usual: see `find_palette`.
    """
    for note in notes:
        for number, colour in note.colours.items():
            other, path = usual.get(colour, (number, ""))
            if other != number:
                raise UserError(
                    f"{note.path}: its palette shows {number} as {colour}, which is {other} in {path}; the numbers in "
                    "palettes are the classes: save all label maps with the same palette"
                )


def _compared_cases(dataset):
    """The cases, spread over the data, with whose masks those of all others are compared."""
    cases = [case for case in dataset.cases if case.masks]
    return [cases[index] for index in spread_indices(len(cases), COMPARED)]
