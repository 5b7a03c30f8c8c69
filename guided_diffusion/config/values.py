"""Values of options: one strict parser for each type, and the rules of each option.

Flags, YAML files, checkpoints and programs all pass through `read_value` or `check_value`, so that a value is accepted
or refused wherever it stands.
"""

import errno
import math
import os
import re
import stat

from ..io.hub import is_on_hub
from ..io.storage import check_path, is_remote
from ..io.texts import has_control, shown
from ..runtime.errors import UserError

NO_VALUE = object()  # the value of a flag without one, unless the flag is boolean
WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+")  # not \d, which full-width and other scripts' digits match
REAL_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
NOT_FINITE = re.compile(r"[+-]?\.?(nan|inf|infinity)", re.IGNORECASE)
MOST_DIGITS = 40
BOOLEANS = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}
WANTED = {bool: "True or False", int: "a whole number", float: "a number"}
MOST_IN_LIST = 100
MOST_LETTERS = 10_000  # of any text
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")  # how a URL begins
OTHER_PLACES = {"remote": "one on gs:// or az://", "hub": "a model on hf://"}  # beside local paths, by an option's rule
PATH_ROOM = 400  # bytes of a path that the names of files and folders below it may need; a path has 4096 at most


# ---- from text ---------------------------------------------------------------------------------------------------


def as_boolean(text):
    """True or False. Raises ValueError for a word that is not in `BOOLEANS`."""
    if text.strip().lower() not in BOOLEANS:
        raise ValueError(text)
    return BOOLEANS[text.strip().lower()]


def as_whole(text):
    """An int of at most `MOST_DIGITS` ASCII digits. Raises ValueError for any other text, such as 1e3, 1_000 or 3.0."""
    text = text.strip(" ")
    if not WHOLE_NUMBER.fullmatch(text) or len(text) > MOST_DIGITS:
        raise ValueError(text)
    return int(text)


def as_real(text):
    """A float, perhaps infinite or NaN. Raises ValueError for a text that is no number in ASCII, such as 1_000."""
    text = text.strip(" ")
    if NOT_FINITE.fullmatch(text):
        return math.nan
    if not REAL_NUMBER.fullmatch(text):
        raise ValueError(text)
    return float(text)


PARSERS = {bool: as_boolean, int: as_whole, float: as_real, str: lambda text: text.strip("\n")}


def numbers(name, text, kind, minimum=None, maximum=None):
    """A list in a flag's text, "1,2,4", as a tuple of `kind`s, int or float; () for an empty text.

    minimum, maximum: bounds of each number. Raises `UserError` that names the flag for anything else between commas,
    and for numbers that are not finite.
    """
    flag, text = f"--{name} {shown(str(text))}", str(text)
    parts = text.split(",") if text.strip() else []
    if len(parts) > MOST_IN_LIST:
        raise UserError(f"{flag}: has {len(parts)} numbers; {MOST_IN_LIST} are the most")
    try:
        values = tuple(PARSERS[kind](part) for part in parts)
    except ValueError:
        what = {int: "whole numbers", float: "numbers"}[kind]
        raise UserError(f"{flag}: must be {what} separated by commas") from None
    for value in values:
        if not math.isfinite(value):
            raise UserError(f"{flag}: holds a number that is not finite")
        if minimum is not None and value < minimum:
            raise UserError(f"{flag}: every number must be at least {minimum}")
        if maximum is not None and value > maximum:
            raise UserError(f"{flag}: every number must be at most {maximum}")
    return values


def read_value(item, value):
    """The value of a flag or of a YAML file in the type of the option `item`, a dataclass field.

    value: text, a number, True, False, None (for an empty text), or a list of these, which becomes text with commas.
    Raises `UserError` for a wrong type or a value against the option's rules.
    """
    name, kind = item.name, item.type
    if value is NO_VALUE:
        raise UserError(f"--{name}: needs a value")
    parts = value if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(part, (dict, list, tuple, set, bytes)) for part in parts):
        raise UserError(f"--{name} {shown(value)}: must be one value, or a list of values")
    if parts is value and (kind is not str or item.metadata["choices"] or (is_path(item) and not is_list(item))):
        raise UserError(f"--{name} {shown(value)}: must be one value, not a list")
    text = ",".join("" if part is None else str(part) for part in parts)
    if not text and kind is not str:
        raise UserError(f"--{name}: needs a value")
    try:  # from text even if YAML has a type, since int(3.7) and int(True) would pass
        value = PARSERS[kind](text)
    except ValueError:
        raise UserError(f"--{name} {shown(text)}: must be {WANTED[kind]}") from None
    check_value(item, value, text)
    return value


# ---- rules -------------------------------------------------------------------------------------------------------


def is_path(item):
    """Whether the option `item` names a file or a folder."""
    return bool(item.metadata["remote"] or item.metadata["path"])


def is_list(item):
    """Whether the option `item` may name several files or folders."""
    return item.metadata["several"]


def path_list(text):
    """The paths of a value such as "runs/a,runs/b"; one path where it exists as it is written, commas included."""
    if "," not in text or os.path.exists(text):
        return (text,)
    return tuple(part.strip() for part in text.split(","))


def check_value(item, value, text=None):
    """Raise `UserError` unless `value` has the type of the option `item`, a dataclass field, and satisfies its rules.

    text: the value as the user wrote it, for the message; None: `value` as Python prints it.
    """
    rules, flag = item.metadata, f"--{item.name} {shown(str(value) if text is None else text)}"
    if not _has_type(value, item.type):
        raise UserError(f"{flag}: must be {WANTED.get(item.type, 'text')}")
    if isinstance(value, str):
        _check_text(item, value, flag)
    if rules["choices"] and value not in rules["choices"]:
        raise UserError(f"{flag}: must be one of {', '.join(filter(None, rules['choices']))}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{flag}: is not a finite number")
    if rules["minimum"] is not None and value < rules["minimum"]:
        raise UserError(f"{flag}: must be at least {rules['minimum']}")
    if rules["above"] is not None and value <= rules["above"]:
        raise UserError(f"{flag}: must be above {rules['above']}")
    if rules["maximum"] is not None and value > rules["maximum"]:
        why = f": {rules['why']}" if rules["why"] else ""
        raise UserError(f"{flag}: must be at most {_shown_bound(rules['maximum'])}{why}")


def _shown_bound(bound):
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


def _has_type(value, kind):
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _check_text(item, value, flag):
    """Raise `UserError` for a text with control characters or not in UTF-8, and for a path that cannot be one."""
    if has_control(value):
        raise UserError(f"{flag}: holds a line break or another control character; leave it out")
    if len(value) > MOST_LETTERS:
        raise UserError(f"{flag}: has {len(value)} characters; {MOST_LETTERS} are the most")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{flag}: is not in UTF-8; rename the file or folder, or write the value in UTF-8") from None
    paths = path_list(value) if is_list(item) else (value,)
    if len(paths) > 1 and "" in paths:
        raise UserError(f"{flag}: has no path beside a comma; write A,B")
    if len(paths) > MOST_IN_LIST:
        raise UserError(f"{flag}: has {len(paths)} paths; {MOST_IN_LIST} are the most")
    for path in paths:
        if is_remote(path):
            if not item.metadata["remote"]:
                raise UserError(f"{flag}: must be a local path")
            check_path(item.name, path)
        elif is_path(item) and (scheme := SCHEME.match(path)) and not (item.metadata["hub"] and is_on_hub(path)):
            others = "".join(f" or {text}" for kind, text in OTHER_PLACES.items() if item.metadata[kind])
            raise UserError(f"{flag}: cannot be on {scheme[0]}; name a local path{others}")
        elif is_path(item):
            _check_local_path(item, path, flag)


def _check_local_path(item, value, flag):
    if not value and item.default:
        raise UserError(f"--{item.name}: is empty; name a folder, or leave it out for {item.default}")
    if value and not value.strip():
        raise UserError(f"--{item.name} {value!r}: is blank; name a file or folder")
    if len(os.path.abspath(value).encode()) > 4096 - PATH_ROOM:
        raise UserError(f"{flag}: is a longer path than a file system allows; choose a shorter one")
    try:
        mode = os.stat(value).st_mode if value else 0
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{flag}: has a longer name than a file system allows; choose a shorter one") from None
        return  # there may be nothing yet; whoever opens it says so
    if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{flag}: is a pipe, socket or device, not a file or folder; name another")
