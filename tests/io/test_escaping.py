"""Text from strangers in tables, Markdown and pages."""

import csv
import io

import pytest

from guided_diffusion.io.escaping import (
    csv_cell,
    csv_text,
    is_place,
    markdown_code,
    markdown_text,
    place_name,
    with_short_places,
)


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\tx",
        "\rx",
        "'=1",
        "'",
        "''",
        "'-x",
        "a'b",
        "ISIC_0001",
        "",
        "x=1",
        " =1",
        "＝1",
        " '=1",
    ]
    + ["＝1", " '=1", '=HYPERLINK("http://x")', "a,b", "1e5"],
)
def test_a_cell_is_no_formula_and_reads_back(text):
    cell = csv_cell(text)
    assert cell.lstrip(" ")[:1] not in tuple("=+-@\t\r＝＋－＠") and csv_text(cell) == text
    file = io.StringIO()
    csv.writer(file).writerow([cell, "x"])
    assert csv_text(next(csv.reader(io.StringIO(file.getvalue(), newline="")))[0]) == text


def test_usual_names_stay_as_they_are():
    for name in ("ISIC_0001", "BraTS2021_00000", "a-b", "1", "kidney (left)", "x_y_z", "tumour+edema"):
        assert csv_cell(name) == name and markdown_text(name) == name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("[x](javascript:alert(1))", r"\[x\](javascript:alert(1))"),
        ("![x](http://a/b.png)", r"!\[x\](http&#58;//a/b.png)"),
        ("a|b", r"a\|b"),
        ("a\n# b", "a # b"),
        ("`x` *y* _z_ ~~w~~", r"\`x\` \*y\* \_z\_ \~\~w\~\~"),
        ("&#106;avascript", "&amp;#106;avascript"),
        ("\\<b>", r"\\&lt;b&gt;"),
        ("www.evil.org", "www&#46;evil.org"),
        (0.5, "0.5"),
        ("num_channels -1", "num_channels -1"),
    ],
)
def test_markdown_acts_on_nothing(text, shown):
    assert markdown_text(text) == shown


def test_code_is_for_plain_text_alone():
    assert markdown_code("FOLDER") == "`FOLDER`" and markdown_code("my_loader.py:Own") == "`my_loader.py:Own`"
    assert markdown_code("a`<b>") == r"a\`&lt;b&gt;" and markdown_code("http://x.org") == "http&#58;//x.org"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/anna/ISIC/Train/", "Train"),
        ("gs://bucket/own/data", "data"),
        ("C:\\Users\\anna\\data", "data"),
        ("/home/anna/my.py:Own", "my.py:Own"),
        ("FOLDER", "FOLDER"),
        ("", ""),
        ("/", "/"),
    ],
)
def test_a_place_shows_its_last_name(path, name):
    assert place_name(path) == name


def test_what_is_a_place():
    assert all(map(is_place, ("/a/b", "gs://a/b", "C:\\x", "~/x", "../x")))
    assert not any(map(is_place, ("none", "auto", "", "0.9,1.1", 5, None, "last.pt", "v2")))


def test_a_message_without_its_places(tmp_path):
    text = "3 cases of /home/anna b/data: (see /srv/x/y.png) or gs://b/c/d, 1/2 of 0.5/s; runs/first stay"
    assert (
        with_short_places(text, "/home/anna b/data")
        == "3 cases of data: (see y.png) or d, 1/2 of 0.5/s; runs/first stay"
    )
