"""The shell of the HTML pages: it stands alone, and no text can break out of it."""

import base64
import hashlib
import math
import re
from html import unescape

from pages import content

from guided_diffusion.report.page import asset, data_uri, facts_list, figure, header, link_to, tiles, write_page

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
    parts = [header(NASTY, NASTY, [(NASTY, NASTY)]), tiles([(NASTY,) * 3], NASTY), facts_list([(NASTY, NASTY)])]
    write_page(tmp_path / "a.html", NASTY, "".join(parts) + figure(NASTY, "<b></b>"), data=[NASTY])
    text = (tmp_path / "a.html").read_text()
    assert NASTY not in text and text.count("<script>") == text.count("</script>") - 1 == 1
    assert content(tmp_path / "a.html") == [NASTY]


def test_data_hold_what_json_cannot(tmp_path):
    write_page(tmp_path / "a.html", "title", "", data={"dice": math.nan, "hd95": math.inf, "n": 2})
    assert content(tmp_path / "a.html") == {"dice": None, "hd95": None, "n": 2}


def test_a_picture_in_a_uri():
    kind, _, data = data_uri(b"\x00\xff", "png").partition(";base64,")
    assert kind == "data:image/png" and base64.b64decode(data) == b"\x00\xff"


def test_links_lead_to_files_below_the_page_alone(tmp_path):
    folder = tmp_path / "results"
    (folder / "masks").mkdir(parents=True)
    for path in (folder / "masks" / "a b#1%.png", folder / "c:d.csv", tmp_path / "private.csv"):
        path.write_text("")
    (folder / "link.csv").symlink_to(tmp_path / "private.csv")
    assert link_to(folder / "masks" / "a b#1%.png", folder) == "masks/a%20b%231%25.png"
    assert link_to(folder / "c:d.csv", folder) == "c%3Ad.csv"  # no scheme
    for outside in (tmp_path / "private.csv", folder / ".." / "private.csv", folder / "link.csv", folder / "none.csv"):
        assert link_to(outside, folder) == ""


def luminance(colour):
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def test_text_stands_out_from_its_ground_in_both_themes():
    """WCAG 2.2, level AA: a contrast of 4.5."""
    themes = re.findall(r"\{\s*color-scheme: (?:light|dark);(.*?)\}", asset("page.css"), re.S)
    assert len(themes) == 3 and themes[1].split() == themes[2].split()
    for theme in themes:
        colours = dict(re.findall(r"--(\w+): (#\w{6})", theme))
        for ground in ("ground", "paper", "hover"):
            for text in ("ink", "soft", "accent"):
                dark, light = sorted(luminance(colours[name]) for name in (ground, text))
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (ground, text)
