"""The report: its content, the place of its pictures, and sorting, opening and sliding in a real browser."""

import json
import re
import shutil
from html import unescape
from urllib.parse import unquote

import nibabel
import numpy as np
import pytest
from conftest import FAST, strict_json, write_folder
from helpers import write_volume
from pages import TOP, Page, cards, content, links, main_figures, picture
from PIL import Image

from guided_diffusion.data.cases import group_cases
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.evaluation.evaluate import EvaluationSettings, evaluate
from guided_diffusion.inference.answer import CaseMaps
from guided_diffusion.inference.results import ResultsFolder
from guided_diffusion.io.drawing import MASK_COLOUR, TRUTH_COLOUR, border
from guided_diffusion.report import results_page as report
from guided_diffusion.report.results_page import try_report, write_report

NASTY = "<b>&\"'#?%41"
NAMES = (NASTY, *(f"case{k}" for k in range(6)))


def disc(radius, shape=(40, 48), centre=(20, 20)):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.hypot(y - centre[0], x - centre[1]) < radius


def answer(masks):
    """The `CaseMaps` of members bool [E, ...] of one class."""
    members = np.stack(masks)[:, None]
    soft = members * 0.8 + 0.1
    mean = soft.mean(axis=0, dtype=np.float32)
    return CaseMaps(mean > 0.5, mean, soft.std(axis=0), members, None)


def sampled(folder, dataset, masks_of, manifest=None):
    """A results folder with the answers of members masks_of(number of the case): a list of bool arrays."""
    data = {"checkpoint_sha256": "", "settings": {"num_ensemble": 3}, "data": {"data_dir": ""}} | (manifest or {})
    results = ResultsFolder(folder, data, save_samples=True)
    for number, unit in enumerate(group_cases(dataset.cases)):
        maps = answer(masks_of(number))
        if unit.is_volume:
            geometry = dataset.geometry(unit.cases[0])
            write_volume(results, unit.name, maps, geometry, lambda k, unit=unit: dataset.load_image(unit.cases[k]))
        else:
            results.write_image(unit.name, maps, dataset.load_image(unit.cases[0]))
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A FOLDER data set of `NAMES`, the truth a disc of radius 10."""
    folder = tmp_path_factory.mktemp("photographs")
    for part in ("images", "masks"):
        (folder / part).mkdir()
    for number, name in enumerate(NAMES):
        picture = np.full((40, 48, 3), 60 + 20 * number, np.uint8)
        Image.fromarray(picture).save(folder / "images" / f"{name}.png")
        Image.fromarray(disc(10) * np.uint8(255)).save(folder / "masks" / f"{name}.png")
    return build_dataset("FOLDER", folder, 16)


@pytest.fixture(scope="module")
def results(photographs, tmp_path_factory):
    """Results whose Dice grows with the case's number in the order of names, evaluated."""
    folder = sampled(tmp_path_factory.mktemp("results"), photographs, lambda n: [disc(3 + n), disc(4 + n), disc(5 + n)])
    evaluate(folder, photographs, settings=EvaluationSettings(sizes="staple"))
    return folder


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """(results, data set) of two volumes of 12 slices, of which slices 3 to 7 hold the mask."""
    folder = tmp_path_factory.mktemp("volumes")
    for part in ("images", "masks"):
        (folder / part).mkdir()
    mask = np.zeros((40, 48, 12), bool)
    mask[..., 3:8] = disc(10)[..., None]
    values = np.random.default_rng(0).random((40, 48, 12)) + mask
    for name in ("v0", "v1"):
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / "images" / f"{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8), np.eye(4)), folder / "masks" / f"{name}.nii.gz")
    dataset = build_dataset("FOLDER", folder, 16)
    shown = dataset.load_mask(dataset.cases[5])[0, 0]  # as it lies once it is turned
    turned = np.stack([shown if 3 <= k < 8 else np.zeros_like(shown) for k in range(12)], axis=-1)
    out = sampled(folder / "results", dataset, lambda n: [turned, turned, turned if n else ~turned])
    evaluate(out, dataset)
    return out, dataset


def write(folder, dataset, **keywords):
    return write_report(folder, dataset, group_cases(dataset.cases), **keywords)


# ---- the page ----------------------------------------------------------------------------------------------------


def test_the_page_stands_alone_and_holds_the_figures(results, photographs):
    page = write(results, photographs)
    text = page.read_text()
    assert not re.search(r"https?://|<link rel=\"stylesheet|@import|src=\"(?!data:)", text)
    assert "default-src &#x27;none&#x27;" in text and "unsafe" not in text and not (results / "report_files").exists()
    assert "<b>" not in text and NASTY in {case["name"] for case in content(page)["cases"]}
    dice = strict_json(results / "summary.json")["ensemble"]["dice"]
    for figure in (f"{dice['mean']:.4f}", f"{dice['low']:.4f} to {dice['high']:.4f}"):
        assert f"<td>{figure}</td>" in text
    shown = unescape(re.sub("<[^>]*>", "", text))
    for words in (
        "Every figure is defined in docs/evaluation.md",
        "Reliability",
        "Ensemble size",
        "Error retention",
        "Expected and true Dice",
    ):
        assert words in shown, words


def test_what_is_drawn_of_a_case(results, photographs):
    page = write(results, photographs)
    case = next(case for case in content(page)["cases"] if case["name"] == "case0")
    assert case["layers"] == ["truth", "mask", "member 0", "member 1", "member 2"] and case["indices"] == [None]
    (files,) = case["slices"]
    image = np.asarray(picture(files["image"]).convert("RGB")).astype(int)
    assert image.shape == (40, 48, 3) and abs(image - (60 + 20 * NAMES.index("case0"))).max() <= 3
    lines = picture(files["lines"]).convert("RGBA")
    height, width = case["size"]
    tiles = np.asarray(lines).reshape(height, 5, width, 4)
    truth = np.repeat(np.repeat(disc(10), height // 40, axis=0), width // 48, axis=1)
    drawn = tiles[:, 0, :, 3] > 0
    assert np.array_equal(drawn, border(truth)) and (tiles[:, 0][drawn][:, :3] == TRUTH_COLOUR).all()
    assert (tiles[:, 1][tiles[:, 1, :, 3] > 0][:, :3] == MASK_COLOUR).all()
    (card,) = (card for card in cards(page) if card["name"] == "case0")
    assert picture(card["src"]).size == (4 * 132 + 3 * 2, 110) and content(page)["cases"][int(card["index"])] == case


def test_pictures_lie_beside_the_page_where_they_are_many(results, photographs, monkeypatch):
    write(results, photographs)
    monkeypatch.setattr(report, "EMBEDDED", 3000)  # two or three of them
    page = write(results, photographs)
    shown = [card["src"] for card in cards(page)]
    parts = [source for case in content(page)["cases"] for part in case["slices"] for source in part.values()]
    names = {unquote(source) for source in (*shown, *parts)}
    assert len(names) == 4 * len(NAMES) and all((results / name).is_file() for name in names)
    assert all("%23" in source for source in shown if "b%3E" in source)
    (results / "report_files" / "mine.txt").write_text("not of the report")
    units = group_cases(photographs.cases)
    write_report(results, photographs, units[:3])
    left = {path.parent.name for path in (results / "report_files").rglob("*.jpg")}
    assert left == {unit.name for unit in units[:3]} and (results / "report_files" / "mine.txt").exists()
    (results / "report_files" / "mine.txt").unlink()
    monkeypatch.undo()
    write(results, photographs)
    assert not (results / "report_files").exists()


def test_an_ensemble_curve_of_one_case_has_no_interval(tmp_path):
    """curves.json holds null for the bounds."""
    write_folder(tmp_path / "data", 1)
    dataset = build_dataset("FOLDER", tmp_path / "data", 16)
    truth = dataset.load_mask(dataset.cases[0])[0, 0]
    folder = sampled(tmp_path / "results", dataset, lambda n: [truth, ~truth])
    summary = evaluate(folder, dataset, settings=EvaluationSettings(sizes="staple"))
    assert np.isnan(summary["ensemble_size"]["dice"][0]["low"])
    text = write(folder, dataset).read_text()
    assert "Ensemble size" in text and "<polygon" not in text


def test_without_truth_cases_are_sorted_by_their_uncertainty(photographs, tmp_path):
    folder = sampled(tmp_path / "r", photographs, lambda n: [disc(5), disc(5), disc(5 + n)])
    page = write(folder, photographs, read_raters=lambda *_: None)
    data = content(page)
    assert data["columns"][0] == {"key": "expected_dice", "label": "Expected Dice", "worst": "low"}
    place = [column["key"] for column in data["columns"]].index("agreement")
    scores = [case["scores"][place] for case in data["cases"]]
    assert scores == sorted(scores, reverse=True) and scores[0] == 1 and "truth" not in data["cases"][0]["layers"]
    assert "There is no truth to compare with" in page.read_text()
    assert data["uncertainty"] == "standard deviation of the members"
    figures = main_figures(page)
    assert list(figures) == ["Cases", "Expected Dice", "Agreement of members", "Mask's area", "Empty masks"]
    assert figures["Cases"] == ("7", "without truth") and figures["Empty masks"] == ("0 of 7", "")


def test_the_uncertainty_of_one_pass_is_named(photographs, tmp_path):
    folder = sampled(tmp_path / "r", photographs, lambda n: [disc(5)], {"settings": {"num_ensemble": 0}})
    page = write_report(folder, photographs, group_cases(photographs.cases)[:1], read_raters=lambda *_: None)
    assert content(page)["uncertainty"] == "√(p (1 − p))" and "Agreement of members" not in main_figures(page)


def test_a_folder_of_masks_from_elsewhere(script, photographs, tmp_path):
    (tmp_path / "masks").mkdir()
    for name in NAMES[1:]:
        Image.fromarray(disc(8, (20, 24), (10, 10)) * np.uint8(255)).save(tmp_path / "masks" / f"{name}.png")
    where = ["--data_name FOLDER --data_dir", photographs.data_dir, "--out_dir", tmp_path / "scores"]
    script("segmentation_eval", ["--pred_dir", tmp_path / "masks", *where])
    data = content(tmp_path / "scores" / "report.html")
    assert [case["name"] for case in data["cases"]] == list(NAMES[1:])
    assert data["cases"][0]["layers"] == ["truth", "mask"] and data["cases"][0]["slices"][0]["maps"] is None
    assert all(card["href"] == "#cases" for card in cards(tmp_path / "scores" / "report.html"))  # they lie elsewhere
    assert not (tmp_path / "masks" / "report.html").exists()


def test_an_image_that_is_gone_costs_its_own_card_alone(photographs, tmp_path, caplog, capsys):
    data = tmp_path / "data"
    shutil.copytree(photographs.data_dir, data)
    dataset = build_dataset("FOLDER", data, 16)
    folder = sampled(tmp_path / "r", dataset, lambda n: [disc(9)])
    names = [case.name for case in dataset.cases]
    (data / "images" / "case3.png").write_bytes(b"")
    page = try_report(folder, dataset, group_cases(dataset.cases))
    assert [case["name"] for case in content(page)["cases"]] == [name for name in names if name != "case3"]
    assert '<p class="note">1 case could not be read: case3</p>' in page.read_text()
    assert "report.html lacks 1 case that could not be read: case3; " in capsys.readouterr().out
    for path in (data / "images").iterdir():
        path.write_bytes(b"")
    assert try_report(folder, dataset, group_cases(dataset.cases)) is None
    assert f"no report.html: none of {len(names)} cases could be read; the first: " in capsys.readouterr().out


def test_sampling_again_brings_the_report_back(sample, trained, pictures):
    out = sample(trained, pictures, f"{FAST} --num_samples 2")
    first = (out / "report.html").read_text()
    (out / "report.html").unlink()
    sample(trained, pictures, f"{FAST} --num_samples 2")
    assert (out / "report.html").read_text() == first


def test_pictures_come_first_then_figures_then_files(results, photographs):
    page = write(results, photographs)
    text = page.read_text()
    marks = ('class="tiles"', 'class="card"', 'id="figures"', 'id="charts"', 'id="run"', "<dialog")
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)
    summary = strict_json(results / "summary.json")
    dice, ratio = summary["ensemble"]["dice"], summary["probability"]["expected_volume_ratio"]
    assert main_figures(page) == {
        "Cases": ("7", ""),
        "Dice": (f"{dice['mean']:.3f}", f"95 %: {dice['low']:.3f} to {dice['high']:.3f}"),
        "Expected / true area": (f"{ratio['mean']:.3f}", f"95 %: {ratio['low']:.3f} to {ratio['high']:.3f}"),
        "Log loss per lesion pixel": main_figures(page)["Log loss per lesion pixel"],
        "Empty masks": ("0 of 7", "0 missed, 0 rightly empty; 0 false alarms"),
    }


def test_every_link_leads_to_a_file_of_the_folder(results, photographs, tmp_path):
    page = write(results, photographs)
    found = {unquote(address) for address in links(page)}
    tables = {"metrics.csv", "summary.json", "curves.json", "manifest.json"}
    assert found == tables | {f"masks/{name}.png" for name in NAMES}
    assert all((results / name).is_file() for name in found)
    assert {card["name"]: unquote(card["href"]) for card in cards(page)}["case2"] == "masks/case2.png"


def test_the_cards_are_there_without_a_script(results, photographs):
    dices = {name: value["dice"] for name, value in report.read_scores(results / "metrics.csv").items()}
    found = cards(write(results, photographs))
    assert [card["name"] for card in found] == sorted(dices, key=dices.get)
    for card in found:
        assert card["alt"] == "image, mask and truth, members, uncertainty"
        dice = dices[card["name"]]
        assert card["values"].startswith(f"Dice {1 if dice == 1 else f'{dice:.3f}'}  Expected Dice ")


def test_masks_of_pictures_have_an_area_and_those_of_volumes_a_volume(results, photographs, volumes):
    text = {size: write(*of).read_text() for size, of in (("area", (results, photographs)), ("volume", volumes))}
    for size, other in (("area", "volume"), ("volume", "area")):
        shown = re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", text[size], flags=re.S).lower()
        labels = json.dumps(re.findall(r'"label": ?"([^"]*)"', text[size])).lower()
        for words in (shown, labels):
            assert f"/ true {size}" in words and not re.search(rf"\b{other}\b", words)


def test_intervals_need_five_patients(volumes, photographs, results, tmp_path):
    page = write(*volumes)
    text = page.read_text()
    assert "95 %:" not in text and not re.search(r"\.\d+ to -?\d", re.sub("<title>.*?</title>", "", text))
    assert text.count("no intervals below 5 patients") == 1
    assert main_figures(page)["Cases"] == ("2", "no intervals below 5 patients")
    folder = shutil.copytree(results, tmp_path / "grouped")
    summary = strict_json(folder / "summary.json") | {"groups": 4}
    (folder / "summary.json").write_text(json.dumps(summary))
    figures = main_figures(write(folder, photographs))
    assert figures["Cases"] == ("7", "of 4 patients; no intervals below 5 patients") and figures["Dice"][1] == ""


def test_a_page_of_5000_cases_is_small(results, photographs, monkeypatch):
    monkeypatch.setattr(report, "EMBEDDED", 0)
    units = group_cases(photographs.cases)
    few, more = (write_report(results, photographs, units[:count]).stat().st_size for count in (3, 7))
    assert few + 5000 * (more - few) / 4 < 8e6


# ---- in a browser ------------------------------------------------------------------------------------------------


def test_the_report_in_a_browser(browser, results, photographs, volumes, tmp_path, monkeypatch):
    """One start of the browser for all of it, which takes seconds."""
    from selenium.webdriver.common.keys import Keys

    dices = {name: value["dice"] for name, value in report.read_scores(results / "metrics.csv").items()}
    worst_first = sorted(dices, key=dices.get)
    page = Page(browser, write(results, photographs))
    assert page.complaints() == [] and page.shown() == worst_first
    assert page.run("return document.querySelector('h1').textContent") == "Segmentation report"
    assert page.run("return [...document.images].every((i) => !i.complete || i.naturalWidth > 0)")

    # Sorting, filtering, and the bars of a histogram.
    page.run("document.getElementById('order').click()")
    assert page.shown() == worst_first[::-1]
    page.run("const s = document.getElementById('sort'); s.value = ''; s.dispatchEvent(new Event('change'))")
    assert page.shown()[::-1] == sorted(NAMES)
    page.run("document.querySelector('[type=reset]').click()")
    page.wait("return document.getElementById('sort').value == 'dice'")
    assert page.text("filtered") == "Dice"  # what "from" and "to" bound
    page.run("const s = document.getElementById('search'); s.value = 'CASE2'; s.dispatchEvent(new Event('input'))")
    assert (
        page.shown() == ["case2"] and page.run("return document.getElementById('count').textContent") == "1 of 7 cases"
    )
    page.run("document.querySelector('[type=reset]').click()")
    page.wait("return document.querySelectorAll('.card').length == 7")
    page.run(
        "[...document.querySelectorAll('[data-column=dice] .bar')].filter((b) => b.height.baseVal.value)[0]"
        ".dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    )
    assert 0 < len(page.shown()) < 7 and page.shown() == worst_first[: len(page.shown())]
    page.run("document.querySelector('[type=reset]').click()")
    page.wait("return document.querySelectorAll('.card').length == 7")

    # By keyboard alone: along the cards, into a case, on to the next, its layers, and back.
    page.run("document.querySelector('.card').focus()")
    page.press(Keys.ARROW_RIGHT)
    assert page.focused() == worst_first[1]
    page.press(Keys.END, Keys.ARROW_LEFT, Keys.HOME, Keys.ENTER)
    page.wait("return document.getElementById('case').open")
    red, green, blue, yellow = page.colours()
    assert red > 50 and green > 50 and not blue and not yellow
    assert page.text("case-name") == worst_first[0]
    assert page.run("return document.getElementById('mask-file').href").endswith(".png")
    page.press("m", "e")
    page.wait(
        "return document.querySelector('.members input').checked && !document.querySelector('.mask input').checked"
    )
    members = page.colours()
    assert not members[0] and members[2] > 50 and members[3] > 50
    pressed = "return [...document.querySelectorAll('#members button')].map((b) => b.ariaPressed).join()"
    page.press("1")
    page.wait(f"{pressed} == 'false,true,true'")
    _, _, blue, yellow = page.colours()
    assert not blue and yellow > 50
    page.press("e", "2")  # none, then one alone
    page.wait(f"{pressed} == 'false,true,false'")
    page.run("document.querySelectorAll('#members button')[0].click()")
    page.wait(f"{pressed} == 'true,true,false'")
    drawn = "return [...document.querySelectorAll('#members canvas')].map((c) => c.toDataURL())"
    assert len(set(page.run(drawn))) == 3

    # Zoom, window and level, and the scale of a map.
    before = page.colours()
    page.press("+", "+")
    page.wait("return document.getElementById('zoom').textContent == '4×'")
    page.press("-", Keys.SHIFT + Keys.ARROW_LEFT)
    page.wait("return document.getElementById('zoom').textContent == '2×'")
    assert page.colours() != before and page.text("case-name") == worst_first[0]
    shade = "return getComputedStyle(document.getElementById('image')).filter"
    page.run("const w = document.getElementById('window'); w.value = 50; w.dispatchEvent(new Event('input'))")
    assert page.run(shade) == "brightness(1) contrast(2)"  # from a quarter to three quarters
    page.press("0")
    page.wait("return document.getElementById('zoom').textContent == '1×'")
    assert page.colours() == before and page.run(shade) == "none"
    page.press("u")
    assert page.wait("return document.getElementById('scale').innerText").split("\n")[0] == (
        "uncertainty: standard deviation of the members"
    )
    assert page.run("return document.querySelector('#scale .ends').textContent") == "00.250.5"
    page.press("u", Keys.ARROW_RIGHT)
    assert page.text("case-name") == worst_first[1]
    assert page.run("return document.getElementById('slider').hidden")
    page.press(Keys.ESCAPE)
    page.wait("return !document.getElementById('case').open")
    assert page.focused() == worst_first[1]

    # Of a long name the start is seen too, beside whatever figures.
    start = "document.querySelector('.card .start')"
    page.run(
        f"{start}.textContent = 'x'.repeat(60); document.querySelector('.card .values').textContent += ' and more'"
    )
    assert page.run(f"return {start}.clientWidth") > 150

    # The first picture is on the first screen of a monitor and of a phone.
    assert 0 < page.run(TOP, ".card img") < 400
    page.resize(400, 850)
    assert 0 < page.run(TOP, ".card img") < 500
    assert page.run("return document.documentElement.scrollWidth") <= 400  # nothing is cut off

    # The theme.
    ground = "return getComputedStyle(document.body).backgroundColor"
    light = page.run(ground)
    page.run("const b = document.getElementById('theme'); b.click(); b.click()")
    assert (
        page.run("return document.getElementById('theme').textContent") == "Theme: dark" and page.run(ground) != light
    )
    assert page.complaints() == []

    # A volume: from its largest slice up and down, as far as there are slices.
    page = Page(browser, write(*volumes))
    page.run("document.querySelector('.card').click()")
    text = "return document.getElementById('slice-text').textContent"
    page.wait("return document.getElementById('slice-text').textContent")
    first = page.run(text)
    page.press(Keys.ARROW_UP)
    page.wait(f"return document.getElementById('slice-text').textContent != {json.dumps(first)}")
    page.press(Keys.HOME)
    page.wait("return document.getElementById('slice').value == 0")
    assert page.run(text).startswith("Slice 1 of 12")
    page.run("const s = document.getElementById('slice'); s.value = 4; s.dispatchEvent(new Event('input'))")
    page.wait("return document.getElementById('slice-text').textContent.startsWith('Slice 5 of 12')")
    assert page.colours()[0] > 50 and page.complaints() == []

    # Pictures beside the page are found, whatever the case is called.
    monkeypatch.setattr(report, "EMBEDDED", 0)
    page = Page(browser, write(results, photographs, out_dir=shutil.copytree(results, tmp_path / "beside")))
    page.run("document.getElementById('gallery').scrollIntoView()")  # they are loaded as they come into sight
    page.wait("return document.querySelectorAll('.card img')[0].naturalWidth > 0")
    nasty = worst_first.index(NASTY)
    page.run("document.querySelectorAll('.card')[arguments[0]].scrollIntoView()", nasty)
    page.wait(f"return document.querySelectorAll('.card img')[{nasty}].naturalWidth > 0")
    page.run("document.querySelector('.card').click()")
    page.wait("return document.getElementById('canvas').width > 300")
    assert page.complaints() == [] and page.shown() == worst_first


def test_of_many_cases_the_first_are_shown(browser, tmp_path):
    """Their names differ only at the end, which a narrow card keeps."""
    (tmp_path / "images").mkdir()
    names = [f"Hospital_of_a_long_name_2026-01-01_colonoscopy_of_patient_{n:04d}" for n in range(30)]
    for name in names:
        Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(tmp_path / "images" / f"{name}.png")
    dataset = build_dataset("FOLDER", tmp_path, 16)
    folder = sampled(tmp_path / "results", dataset, lambda n: [disc(5, (16, 16), (8, 8))] * 2)
    page = Page(browser, write(folder, dataset))
    assert page.shown() == names[:24] and page.run(TOP, "#run") < 2500
    page.run("document.getElementById('some').click()")
    assert page.shown() == names and page.focused() == names[24]
    assert page.run("return document.getElementById('more').hidden")
    page.resize(400, 850)
    parts = "[...document.querySelectorAll('.card .name')[7].children]"
    start, end = page.run(f"return {parts}.map((e) => [e.textContent, e.scrollWidth > e.clientWidth])")
    assert end == ["f_patient_0007", False] and start[1]
