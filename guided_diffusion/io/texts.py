"""Texts with limits: JSON, JSON lines, YAML and CSV that a stranger may have written, each read by one checked reader.

Every error is a `UserError` of one line that begins with the file's name. A reader neither runs anything that a text
names nor needs much more memory or time than the text has bytes.
"""

import csv
import io
import json
import math
import os
import re
import stat
import unicodedata
from collections.abc import Hashable
from contextlib import suppress

from ..runtime.errors import UserError

MAX_BYTES = 64 * 2**20  # of a JSON or CSV file: a data set of 500,000 cases has a dataset.json of about 50 MB
MAX_YAML_BYTES = 2**18  # a run's config.yaml has 4 KB, and PyYAML reads about 100 KB a second
MAX_LINE = 2**20  # of a JSON text on one line
MAX_DEPTH = 50  # of lists within lists
MAX_DIGITS = 100  # of a number
MAX_NODES = 20_000  # values of a YAML file, each alias counted as what it stands for
SHOWN = 60  # characters of a value that a message repeats

_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_BYTE_ORDER_MARKS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def shown(value, most=SHOWN):
    """A value for a message: one line, without control characters, cut after `most` characters."""
    text = value if isinstance(value, str) else repr(value)
    text = text if text.isprintable() else text.encode("unicode_escape", "surrogatepass").decode()
    return text if len(text) <= most else f"{text[:most]}..."


def has_control(text):
    """Whether a text holds a line break or another control character."""
    return not text.isprintable() and any(unicodedata.category(character) == "Cc" for character in text)


# ---- files -------------------------------------------------------------------------------------------------------


def checked_text(path, limit=MAX_BYTES, *, what="text", pipes=False):
    """The text of a file in UTF-8, with or without a byte order mark.

    limit: the most bytes. what: a noun for the file, in messages. pipes: whether a pipe is read too, which waits for
    its writer. Raises `UserError` for another encoding, for NUL bytes, for a larger file, and for a folder or device;
    OSError where the file cannot be opened.
    """
    _check_regular(path, pipes)
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UserError(f"{path}: is larger than {_size(limit)}, too much for a {what}; make it smaller")
    return _decoded(path, data, what)


def _check_regular(path, pipes=False):
    """Raise `UserError` for a folder or a device, and for a pipe unless `pipes`; OSError where there is nothing."""
    if os.path.islink(path) and not os.path.exists(path):
        raise UserError(f"{path}: is a link to {os.readlink(path)}, which is not there; copy the file, not the link")
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise UserError(f"{path}: is a folder, not a file; move it away, or name the file")
    if not (stat.S_ISREG(mode) or (pipes and stat.S_ISFIFO(mode))):
        raise UserError(f"{path}: is a pipe, socket or device, not a file; put a file there")


def _decoded(path, data, what):
    marked = next((name for mark, name in _BYTE_ORDER_MARKS.items() if data.startswith(mark)), None)
    if marked:
        raise UserError(f"{path}: is no valid {what} in UTF-8: it is in {marked}; save it as UTF-8")
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise UserError(f"{path}: is no valid {what}: line {line} holds a NUL byte; copy it again or save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None


def _size(limit):
    return f"{limit // 2**20} MB" if limit >= 2**20 else f"{limit // 2**10} KB"


# ---- JSON --------------------------------------------------------------------------------------------------------


def read_json(path, schema=None, *, finite=True):
    """The value of a JSON file.

    schema: a type of msgspec that the value must have (see `check_schema`). finite: whether NaN and infinities, which
    are no JSON but which Python writes, are refused. Raises `UserError` with the line if the text is not valid.
    """
    text = checked_text(path, what="JSON file")
    try:
        value = parsed_json(text, finite=finite)
    except ValueError as error:
        raise UserError(f"{path}: is no valid JSON ({error}); correct it") from error
    return value if schema is None else check_schema(value, schema, path)


def read_json_lines(path):
    """The values of a file with one JSON text per line, in order; [] if the file does not exist.

    An incomplete line, such as the last line of a killed run, is skipped, and so is one of more than `MAX_LINE` bytes.
    """
    if not os.path.lexists(path):
        return []
    _check_regular(path)
    values = []
    with open(path, "rb") as file:
        while line := file.readline(MAX_LINE):
            with suppress(ValueError):
                values.append(parsed_json(line.decode()))
    return values


def parsed_json(text, *, finite=True):
    """The value of a JSON text. Raises ValueError for an invalid text, for lists deeper than `MAX_DEPTH`, for a number
    of more than `MAX_DIGITS` digits, for two values of one key, and with `finite` for numbers that are not finite."""
    _check_depth(text)
    constant = _refuse_constant if finite else float
    real = _finite_float if finite else float
    value = json.loads(
        text, object_pairs_hook=_unique_keys, parse_int=_short_int, parse_float=real, parse_constant=constant
    )
    if re.search(r"\\ud[89a-f]", text, re.IGNORECASE):
        _check_surrogates(value)
    return value


def _check_surrogates(value):
    """Raise ValueError for half a character, as "\\ud800", which no file can hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start].encode("unicode_escape", "surrogatepass").decode()
        raise ValueError(f"{half} is half a character; write both halves, or the character") from None


def _check_depth(text):
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for match in _BRACKETS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
        if depth > MAX_DEPTH:
            line = text.count("\n", 0, match.start()) + 1
            raise ValueError(f"line {line}: lists lie within each other {depth} deep, and {MAX_DEPTH} are the most")


def _unique_keys(pairs):
    values = dict(pairs)
    if len(values) < len(pairs):
        for key, value in pairs:
            if values[key] != value:
                raise ValueError(f"the key {shown(key)!r} occurs twice with different values")
    return values


def _short_int(text):
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has {len(text)} digits, and {MAX_DIGITS} are the most")
    return int(text)


def _finite_float(text):
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {shown(text)} is too large")
    return value


def _refuse_constant(word):
    raise ValueError(f"{word} is no number of JSON; write a number or null")


# ---- schemas -----------------------------------------------------------------------------------------------------

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "null": "null",
    "array": "a list",
    "object": "an object {...}",
}


def check_schema(value, schema, path):
    """The value itself if it has the type `schema`, such as a TypedDict with `msgspec.Meta` bounds.

    Keys that a TypedDict does not name may hold anything. Raises `UserError` that names the file and the place in it.
    """
    import msgspec

    try:
        msgspec.convert(value, schema)
    except msgspec.ValidationError as error:
        reason = _in_plain_words(str(error), value)
    except RecursionError:
        reason = "is nested too deeply"
    else:
        return value
    raise UserError(f"{path}: {reason}; correct it, or restore the file as it was written")


def _in_plain_words(message, value):
    """A message for users from one of msgspec, such as "Expected `int`, got `str` - at `$.members[3]`"."""
    text, _, place = message.partition(" - at ")
    place = place.strip("`").removeprefix("key in ").strip("`").removeprefix("$").removeprefix(".")
    where = f'"{place}"' if place else "the file"
    if match := re.fullmatch(r"Expected `([^`]*)`, got `([^`]*)`", text):
        wanted, got = ([_WORDS.get(part, part) for part in group.split(" | ")] for group in match.groups())
        return f"{where} must be {_listed(wanted)}, not {_listed(got)}"
    if match := re.fullmatch(r"Object missing required field `([^`]*)`", text):
        return f'{where} has no "{match[1]}"'
    if match := re.fullmatch(r"Expected `(\w+)` (.*)", text):
        return f"{where} must be {_WORDS.get(match[1], match[1])} {match[2].replace('`', '')}"
    text = text.replace("`", "")
    return f"{where}: {text[:1].lower()}{text[1:]}"


def _listed(words):
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


# ---- YAML --------------------------------------------------------------------------------------------------------

_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NULLS = ("", "~", "null", "Null", "NULL")
_PLAIN_TAGS = tuple(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map"))


def read_yaml(path, *, pipes=False):
    """The value of a YAML file: mappings, lists, texts, numbers, True, False and None.

    An unquoted word becomes a number only if Python writes the number just so; all others, such as 2020-13-01, 12:30,
    010, 1_000, on and no, stay the text that they are, for whoever knows which type is wanted. Raises `UserError` with
    line and column for an invalid text, for two values of one key, for tags, and for aliases that unfold to more than
    `MAX_NODES` values or to themselves. pipes: see `checked_text`.
    """
    import yaml

    text = checked_text(path, MAX_YAML_BYTES, what="YAML file", pipes=pipes)
    try:
        node = yaml.compose(text, _untyped_loader())
        return None if node is None else _Values().of(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        reason = f"{place}{error.problem or error.context}"
        if "single document" in f"{error.context}":
            reason = f"{place}a second document begins, and a file has one"
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        character = error.character if isinstance(error.character, int) else ord(error.character)
        reason = f"line {line}, column {column}: character U+{character:04X} is not allowed"
    except RecursionError:
        reason = f"lists lie within each other too deep; {MAX_DEPTH} are the most"
    except (ValueError, OverflowError) as error:
        reason = str(error)
    raise UserError(f"{path}: is no valid YAML ({' '.join(reason.split())}); correct it")


def _untyped_loader():
    """PyYAML's safe loader without the rules that make dates, octal numbers and so on of unquoted words."""
    import yaml

    return type("UntypedLoader", (yaml.SafeLoader,), {"yaml_implicit_resolvers": {}})


class _Values:
    """The values of YAML nodes. `count`: how many, each alias counted as what it stands for."""

    def __init__(self):
        self.count = 0

    def of(self, node, above=()):
        """The value of a node. above: the nodes that hold it."""
        self.count += 1
        if self.count > MAX_NODES:
            raise ValueError(f"it holds more than {MAX_NODES} values, aliases counted as what they stand for")
        if any(node is other for other in above):
            raise ValueError(f"{_position(node)}: an alias stands for what holds it")
        if len(above) > MAX_DEPTH:
            raise ValueError(f"{_position(node)}: lists lie within each other too deep; {MAX_DEPTH} are the most")
        if node.tag not in _PLAIN_TAGS:
            raise ValueError(f"{_position(node)}: the tag {shown(node.tag)} is not read; leave it out")
        if node.id == "scalar":
            return node.value if node.style is not None else _typed(node.value)
        if node.id == "sequence":
            return [self.of(item, (*above, node)) for item in node.value]
        return self._mapping(node, (*above, node))

    def _mapping(self, node, above):
        values, merged = {}, {}
        for key_node, value_node in node.value:
            key = self.of(key_node, above) if key_node.id != "scalar" else key_node.value
            if not isinstance(key, Hashable):
                raise ValueError(f"{_position(key_node)}: a key must be a word")
            value = self.of(value_node, above)
            if key == "<<" and key_node.style is None:
                for other in reversed(value if isinstance(value, list) else [value]):
                    if not isinstance(other, dict):
                        raise ValueError(f"{_position(value_node)}: << merges mappings only")
                    merged |= other
            elif key in values:
                raise ValueError(f"{_position(key_node)}: the key {shown(key)!r} occurs twice; keep one")
            else:
                values[key] = value
        return merged | values


def _position(node):
    return f"line {node.start_mark.line + 1}, column {node.start_mark.column + 1}"


def _typed(word):
    """An unquoted word of YAML as None, True, False or a number, where it can be nothing else; else the word."""
    if word in _NULLS:
        return None
    if word in _BOOLEANS:
        return _BOOLEANS[word]
    for kind in (int, float):
        with suppress(ValueError):
            value = kind(word) if len(word) <= MAX_DIGITS else math.inf
            if word in (str(value), str(value).replace("e", ".0e")) and math.isfinite(value):  # 1.0e-05 is PyYAML's
                return value
    return word


# ---- CSV ---------------------------------------------------------------------------------------------------------


def read_csv(path):
    """Read a CSV file as a list of (line number, list of stripped fields), without empty lines."""
    text = checked_text(path, what="CSV file")
    try:
        rows = _csv_rows(text, strict=True)
    except csv.Error as error:
        if "unexpected end" in str(error):  # an open quote swallows all lines after it
            raise UserError(f'{path}: is no valid CSV file: a quote (") has no end; correct it') from None
        try:
            rows = _csv_rows(text)  # such as "a"b, which has one meaning
        except csv.Error as worse:
            raise UserError(f"{path}: is no valid CSV file in UTF-8 ({worse}); correct it") from None
    return [(number, fields) for number, fields in rows if any(fields)]


def _csv_rows(text, strict=False):
    reader = csv.reader(io.StringIO(text, newline=""), strict=strict)
    return [(reader.line_num, [field.strip() for field in row]) for row in reader]
