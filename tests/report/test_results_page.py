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
from pages import Page, content, picture
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
    case = next(case for case in content(write(results, photographs))["cases"] if case["name"] == "case0")
    assert case["layers"] == ["truth", "mask", "member 0", "member 1", "member 2"] and case["indices"] == [None]
    (files,) = case["pictures"]["slices"]
    image = np.asarray(picture(files["image"]).convert("RGB")).astype(int)
    assert image.shape == (40, 48, 3) and abs(image - (60 + 20 * NAMES.index("case0"))).max() <= 3
    lines = picture(files["lines"]).convert("RGBA")
    height, width = case["size"]
    tiles = np.asarray(lines).reshape(height, 5, width, 4)
    truth = np.repeat(np.repeat(disc(10), height // 40, axis=0), width // 48, axis=1)
    drawn = tiles[:, 0, :, 3] > 0
    assert np.array_equal(drawn, border(truth)) and (tiles[:, 0][drawn][:, :3] == TRUTH_COLOUR).all()
    assert (tiles[:, 1][tiles[:, 1, :, 3] > 0][:, :3] == MASK_COLOUR).all()
    assert picture(case["pictures"]["card"]).size == tuple(case["card"][::-1])


def test_pictures_lie_beside_the_page_where_they_are_many(results, photographs, monkeypatch):
    write(results, photographs)
    monkeypatch.setattr(report, "EMBEDDED", 3000)  # two or three of them
    page = write(results, photographs)
    sources = [case["pictures"] for case in content(page)["cases"]]
    names = {unquote(files["card"]) for files in sources} | {
        unquote(source) for files in sources for part in files["slices"] for source in part.values()
    }
    assert len(names) == 4 * len(NAMES) and all((results / name).is_file() for name in names)
    assert all("%23" in files["card"] for files in sources if "b%3E" in files["card"])
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
    scores = [case["scores"]["agreement"] for case in data["cases"]]
    assert scores == sorted(scores, reverse=True) and scores[0] == 1 and "truth" not in data["cases"][0]["layers"]
    assert "There is no truth to compare with" in page.read_text()


def test_a_folder_of_masks_from_elsewhere(script, photographs, tmp_path):
    (tmp_path / "masks").mkdir()
    for name in NAMES[1:]:
        Image.fromarray(disc(8, (20, 24), (10, 10)) * np.uint8(255)).save(tmp_path / "masks" / f"{name}.png")
    where = ["--data_name FOLDER --data_dir", photographs.data_dir, "--out_dir", tmp_path / "scores"]
    script("segmentation_eval", ["--pred_dir", tmp_path / "masks", *where])
    data = content(tmp_path / "scores" / "report.html")
    assert [case["name"] for case in data["cases"]] == list(NAMES[1:])
    assert data["cases"][0]["layers"] == ["truth", "mask"] and data["cases"][0]["pictures"]["slices"][0]["maps"] is None
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
    assert "<dt>Could not be read</dt><dd>case3</dd>" in page.read_text()
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
    red, green, blue = page.colours()
    assert red > 50 and green > 50 and not blue
    assert page.run("return document.getElementById('case-name').textContent") == worst_first[0]
    page.press("m", "e")
    page.wait(
        "return document.querySelector('.members input').checked && !document.querySelector('.mask input').checked"
    )
    members = page.colours()
    assert not members[0] and members[2] > 50
    page.run("document.querySelectorAll('#members button')[1].focus()")
    page.wait("return document.activeElement.textContent == '1'")
    assert 0 < page.colours()[2] < members[2]
    page.press(Keys.ARROW_RIGHT)
    assert page.run("return document.getElementById('case-name').textContent") == worst_first[1]
    assert page.run("return document.getElementById('slider').hidden")
    page.press(Keys.ESCAPE)
    page.wait("return !document.getElementById('case').open")
    assert page.focused() == worst_first[1]

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
