"""The shell of the HTML pages: it stands alone, and no text can break out of it."""

import base64
import hashlib
import math
import re
from html import unescape

from pages import content

from guided_diffusion.report.page import data_uri, figure, header, write_page

NASTY = '</script><script>alert("1")</script>&'


def test_the_policy_allows_the_page_s_own_script_and_style_alone(tmp_path):
    write_page(tmp_path / "a.html", "title", "<p>body</p>")
    text = (tmp_path / "a.html").read_text()
    policy = unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    for tag, source in (("script", "script-src"), ("style", "style-src")):
        code = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.S)[1]
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"{source} 'sha256-{digest}'" in policy


def test_no_text_ends_the_element_that_holds_it(tmp_path):
    write_page(tmp_path / "a.html", NASTY, header(NASTY, [(NASTY, NASTY)]) + figure(NASTY, "<b></b>"), data=[NASTY])
    text = (tmp_path / "a.html").read_text()
    assert NASTY not in text and text.count("<script>") == text.count("</script>") - 1 == 1
    assert content(tmp_path / "a.html") == [NASTY]


def test_data_hold_what_json_cannot(tmp_path):
    write_page(tmp_path / "a.html", "title", "", data={"dice": math.nan, "hd95": math.inf, "n": 2})
    assert content(tmp_path / "a.html") == {"dice": None, "hd95": None, "n": 2}


def test_a_picture_in_a_uri():
    kind, _, data = data_uri(b"\x00\xff", "png").partition(";base64,")
    assert kind == "data:image/png" and base64.b64decode(data) == b"\x00\xff"
