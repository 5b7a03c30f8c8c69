"""The cards of a report: their order, names, links and legend."""

import re

from guided_diffusion.io.drawing import CLASS_COLOURS, MASK_COLOUR, MEMBER_COLOURS
from guided_diffusion.report.gallery import class_colours, columns_of, drawn_colours, gallery_html, initial_order

LAYERS = ["truth", "mask", "member 0", "member 1"]


def case(name, layers=LAYERS, maps="maps.png", depth=None, **scores):
    return {
        "name": name,
        "scores": scores,
        "layers": layers,
        "slices": [{"image": "", "lines": "", "maps": maps}],
        "indices": [None if depth is None else 0],
        "depth": depth or 1,
        "card_size": (10, 40),
        "file": f"masks/{name}.png" if name.isalnum() else "",
        "empty": "",
    }


def gallery(*cases, names=("lesion",), notes=()):
    return gallery_html(cases, columns_of(cases), names, lambda one: "data:,", notes)


def test_the_worst_case_is_first_and_cases_without_a_figure_last():
    cases = [case("b10"), case("b9"), case("good", dice=0.9), case("bad", dice=0.1)]
    assert [cases[n]["name"] for n in initial_order(cases, columns_of(cases))] == ["bad", "good", "b9", "b10"]
    distances = [case("near", hd95=1.0), case("far", hd95=9.0)]
    assert columns_of(distances)[0]["worst"] == "high" and initial_order(distances, columns_of(distances)) == [1, 0]
    assert initial_order([case("b"), case("a")], []) == [1, 0]


def test_the_columns_begin_with_the_figure_that_sorts():
    columns = columns_of([case("a", volume_error=0.5, agreement=0.5), case("b", dice=1.0, volume_error=0.1)], "area")
    assert [(column["key"], column["label"]) for column in columns] == [
        ("dice", "Dice"),
        ("agreement", "Agreement of members"),
        ("volume_error", "Area error"),
    ]
    assert columns_of([case("a", hd95=1.0)], unit="mm")[0]["label"] == "HD95 (mm)"


def test_a_name_is_text_and_its_end_is_kept():
    html = gallery(case('<b>"'), case("x" * 40 + "_scan_0012"))
    assert "<b>" not in html and 'title="&lt;b&gt;&quot;"' in html
    starts = re.findall(r'class="start">(.*?)</span><span>(.*?)</span>', html)
    assert starts == [("&lt;b&gt;&quot;", ""), ("x" * 36, "xxxx_scan_0012")]


def test_a_card_says_what_it_shows_and_opens_the_mask():
    html = gallery(case("a", dice=0.25, hd95=100.0, nsd=0.5), case("v", depth=12, layers=["mask"], maps=None))
    first, second = re.findall(r'<a class="card".*?</a>', html)
    assert 'href="masks/a.png"' in first and 'alt="image, mask and truth, members, uncertainty"' in first
    assert ">Dice 0.250  HD95 100<" in first and "NSD" not in first
    assert 'alt="image, mask"' in second and ">12 slices<" in second
    assert 'href="#cases"' in gallery(case("no file"))


def test_the_legend_has_a_colour_for_each_line():
    def keys(html):
        legend = re.search(r'<p class="note legend">(.*?)</p>', html)[1]
        return re.findall(r'fill="(.*?)"', legend), re.sub("<[^>]*>", " ", legend).split()

    drawn = drawn_colours()
    assert drawn["mask"] == "#{:02x}{:02x}{:02x}".format(*MASK_COLOUR) and len(set(drawn["members"])) == len(
        MEMBER_COLOURS
    )
    colours, words = keys(gallery(case("a")))
    assert colours == [drawn["mask"], drawn["truth"], *drawn["members"][:2]]
    assert words == ["mask", "truth", "members", "uncertainty", "0", "0.5"]
    colours, words = keys(gallery(case("a", maps=None), names=("liver", "<b>")))
    assert colours == [colour for _, colour in class_colours(("liver", "<b>"))] and len(CLASS_COLOURS) > 1
    assert words == ["liver", "&lt;b&gt;", "dashed:", "truth"]
    assert keys(gallery(case("a", layers=["mask"], maps=None)))[1] == ["mask"]


def test_notes_stand_above_the_cards():
    html = gallery(case("a", layers=["mask"]), notes=["1 case <lost>"])
    assert html.index("1 case &lt;lost&gt;") < html.index("There is no truth") < html.index('class="card"')
    assert "There is no truth" not in gallery(case("a"))
