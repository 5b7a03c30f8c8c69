"""The checked readers of JSON, YAML and CSV: what they read, and the one line for everything else."""

import json
import os
from typing import Annotated, Any, TypedDict

import msgspec
import pytest
import yaml

from guided_diffusion.io import texts
from guided_diffusion.io.texts import check_schema, checked_text, read_csv, read_json, read_json_lines, read_yaml, shown
from guided_diffusion.runtime.errors import UserError

READERS = {"a.json": read_json, "a.yaml": read_yaml, "a.csv": read_csv}
BILLION_LAUGHS = "a: &a [1, 2, 3, 4, 5, 6, 7, 8]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 8)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
)


def refusal(read, path):
    """The message of a reader's `UserError`, which must be one short line that begins with the file's name."""
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < len(str(path)) + 220
    return message


# ---- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\xff\xfe{\0}\0", "in UTF-8: it is in UTF-16"),
        (b"\xff\xfe\0\0", "it is in UTF-32"),
        (b"a: 1\n\0", "line 2 holds a NUL byte"),
        (b"a: caf\xe9", "is not in UTF-8 (unexpected end of data at byte 6)"),
    ],
)
def test_other_encodings_are_named(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    assert words in refusal(READERS[name], tmp_path / name)


@pytest.mark.parametrize("name", READERS)
def test_only_files_of_a_moderate_size_are_read(tmp_path, name, monkeypatch):
    path, read = tmp_path / name, READERS[name]
    path.mkdir()
    assert "is a folder, not a file" in refusal(read, path)
    path.rmdir()
    path.symlink_to("/dev/zero")
    assert "is a pipe, socket or device" in refusal(read, path)
    path.unlink()
    os.mkfifo(path)  # nobody writes to it: opening it would wait for ever
    assert "is a pipe, socket or device" in refusal(read, path)
    path.unlink()
    with open(path, "wb") as file:
        file.truncate(texts.MAX_BYTES + 1)  # a hole: it takes no room on the disk
    assert ("larger than 256 KB" if name == "a.yaml" else "larger than 64 MB") in refusal(read, path)


def test_a_pipe_is_read_where_it_may_be():
    end, begin = os.pipe()
    os.write(begin, b"lr: 1")
    os.close(begin)
    try:
        assert read_yaml(f"/dev/fd/{end}", pipes=True) == {"lr": 1}
    finally:
        os.close(end)


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa")
    assert checked_text(tmp_path / "a.txt") == "a"


def test_a_shown_value_is_one_short_line():
    assert shown("lung") == "lung" and shown([1]) == "[1]"
    assert shown("a\nb\x00\udcff") == "a\\nb\\x00\\udcff"
    assert shown("x" * 1000) == "x" * texts.SHOWN + "..."


# ---- JSON --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": [1, 2}', "line 1 column 12"),
        ("", "Expecting value"),
        ("[" * 100_000, "51 deep, and 50 are the most"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "51 deep"),
        ("[" + "9" * 5000 + "]", "a number has 5000 digits, and 100 are the most"),
        ("[1e999]", "the number 1e999 is too large"),
        (r'{"a": ["\ud800"]}', r"\ud800 is half a character"),
        (r'{"\uDC00": 1}', r"\udc00 is half a character"),
        ("[NaN]", "NaN is no number of JSON"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ('{"a": 1, "a": 2}', "the key 'a' occurs twice with different values"),
    ],
)
def test_json_that_is_refused(tmp_path, text, words):
    (tmp_path / "a.json").write_text(text)
    assert words in refusal(read_json, tmp_path / "a.json")


def test_json_that_is_read(tmp_path):
    deep = "[" * texts.MAX_DEPTH + '"[[[["' + "]" * texts.MAX_DEPTH
    wide = [[{"a": '[{\\"'}] for _ in range(1000)]
    for text in (
        deep,
        json.dumps(wide),
        '{"a": 1, "a": 1}',
        "\ufeff[1e5, -3, null, true]",
        r'["\ud83d\ude00", "\\ud800"]',
    ):
        (tmp_path / "a.json").write_text(text, encoding="utf-8")
        assert read_json(tmp_path / "a.json") == json.loads(text.removeprefix("\ufeff"))
    (tmp_path / "a.json").write_text('{"labels": {"1": "a"}, "release": NaN}')  # as pandas writes it
    assert read_json(tmp_path / "a.json", finite=False)["labels"] == {"1": "a"}


def test_lines_of_json(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_json_lines(path) == []
    path.write_bytes(b'{"a": 1}\n[2]\n\xff\n{"a": ' + b"[" * 5000 + b'\n"\xe2\x80\xa8"\n{"step": 3')
    assert read_json_lines(path) == [{"a": 1}, [2], "\u2028"]
    path.unlink()
    path.mkdir()
    assert "is a folder" in refusal(read_json_lines, path)


# ---- schemas -----------------------------------------------------------------------------------------------------


class Part(TypedDict, total=False):
    count: Annotated[int, msgspec.Meta(ge=1, le=9)]
    members: list[int] | None
    rate: float
    other: dict[str, Any]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "the file must be an object {...}, not a list"),
        (None, "the file must be an object {...}, not null"),
        ({"count": "3"}, '"count" must be a whole number, not text'),
        ({"count": 3.0}, '"count" must be a whole number, not a number'),
        ({"count": True}, '"count" must be a whole number, not true or false'),
        ({"count": 0}, '"count" must be a whole number >= 1'),
        ({"count": 2**70}, '"count" must be a whole number <= 9'),
        ({"members": [1, None]}, '"members[1]" must be a whole number, not null'),
        ({"members": 3}, '"members" must be a list or null, not a whole number'),
        ({"rate": 10**50 * 10**400}, '"rate": number out of range'),
        ({"other": []}, '"other" must be an object {...}, not a list'),
    ],
)
def test_a_schema_names_the_place(value, words):
    assert refusal(lambda path: check_schema(value, Part, path), "x.json").startswith(f"x.json: {words}; ")


def test_what_fits_a_schema_is_unchanged(tmp_path):
    (tmp_path / "a.json").write_text('{"count": 3, "rate": 1, "unknown": [2]}')
    assert read_json(tmp_path / "a.json", Part) == {"count": 3, "rate": 1, "unknown": [2]}


# ---- YAML --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BILLION_LAUGHS, "it holds more than 20000 values"),
        ("a: &a [*a]", "line 1, column 4: an alias stands for what holds it"),
        ("a: &a {b: *a}", "an alias stands for what holds it"),
        ("[" * 1000, "too deep"),
        ("- " * 60 + "1", "too deep"),
        ("a: !!python/object/apply:os.system [ls]", "line 1, column 4: the tag tag:yaml.org,2002:python/object"),
        ("a: !!binary aGk=", "is not read"),
        ("a: !!timestamp 2020-01-01", "is not read"),
        ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' occurs twice"),
        ("? [a, b]\n: 1", "line 1, column 3: a key must be a word"),
        ("a: 1\n---\nb: 2", "a second document begins"),
        ("a: 1\nb\n", "line 3, column 1: could not find expected ':'"),
        ("a: *b", "found undefined alias"),
        ("<<: 3", "<< merges mappings only"),
        ("a: \x07", "line 1, column 4: character U+0007 is not allowed"),
    ],
)
def test_yaml_that_is_refused(tmp_path, text, words):
    (tmp_path / "a.yaml").write_text(text)
    assert words in refusal(read_yaml, tmp_path / "a.yaml")


def test_words_of_yaml_are_not_guessed(tmp_path):
    words = "2020-13-01 2020-01-01 12:30:00 010 0x10 0b1 1_000 on no yes .inf .nan 1.10 +1 1e400 \uff13\uff12".split()
    (tmp_path / "a.yaml").write_text("".join(f"- {word}\n" for word in (*words, "9" * 5000)), encoding="utf-8")
    assert read_yaml(tmp_path / "a.yaml") == [*words, "9" * 5000]


def test_yaml_reads_back_what_pyyaml_writes(tmp_path):
    value = {
        "numbers": [0, -3, 2.5, 1e-3, 1e-5, 2.5e-7, 1e300, 2**40],
        "others": [True, False, None, "", "1", "true", "null", "2020-01-01", "a: b\nc"],
        "none": {},
    }
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(value))
    assert read_yaml(tmp_path / "a.yaml") == value
    (tmp_path / "a.yaml").write_text("base: &b {lr: 1, seed: 2}\nrun:\n  <<: *b\n  seed: 3\n5: 6\n")
    assert read_yaml(tmp_path / "a.yaml") == {"base": {"lr": 1, "seed": 2}, "run": {"lr": 1, "seed": 3}, "5": 6}


# ---- CSV ---------------------------------------------------------------------------------------------------------


def test_csv_that_is_read(tmp_path):
    (tmp_path / "a.csv").write_bytes('\ufeffname, label\r\n\r\nx,"1, 2"\n"a"b,5" wide\n'.encode())
    assert read_csv(tmp_path / "a.csv") == [(1, ["name", "label"]), (3, ["x", "1, 2"]), (4, ["ab", '5" wide'])]


@pytest.mark.parametrize(
    ("text", "words"), [('a,1\nb,"2\nc,3\n', 'a quote (") has no end'), ("a," + "x" * 200_000, "field larger than")]
)
def test_csv_that_is_refused(tmp_path, text, words):
    (tmp_path / "a.csv").write_text(text)
    assert words in refusal(read_csv, tmp_path / "a.csv")
