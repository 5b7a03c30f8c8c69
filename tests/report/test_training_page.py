"""The page of a training run: its curves, its pictures, and the slider in a real browser."""

import json
import re

import numpy as np
from pages import Page, content, links, main_figures, picture
from PIL import Image

from guided_diffusion.report.training_page import read_log, write_training_page

CONFIG = {"data": {"data_dir": "/data/<x>"}, "model": {"version": "v2"}, "train": {"lr": 1e-3}}


def training_run(folder):
    """A run's folder with a log of 60 steps, its last line torn, and pictures of steps 30, 60 and, once, 90."""
    rows = [{"step": n, "loss": 100 / n, "mask": None, "lr": 1e-3} for n in range(1, 61)]
    rows[29]["val_dice"], rows[59]["val_dice"] = 0.5, 0.75
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 61, "lo')
    (folder / "validation").mkdir()
    for step, grey in ((30, 50), (60, 200), (90, 250)):
        Image.fromarray(np.full((20, 30, 3), grey, np.uint8)).save(folder / "validation" / f"step{step:06d}.png")
    return folder


def test_the_page_of_a_training_run(tmp_path):
    page = write_training_page(
        training_run(tmp_path), CONFIG, 100, {"step": 60, "log_loss": 0.25, "cases": ""}, stage=40
    )
    text = page.read_text()
    assert content(page)["pictures"] == [[30, "validation/step000030.png"], [60, "validation/step000060.png"]]
    embedded = np.asarray(picture(re.search('id="picture" [^>]*src="([^"]*)"', text)[1]))
    assert embedded.shape == (20, 30, 3) and abs(embedded.astype(int) - 200).max() <= 3
    assert main_figures(page) == {
        "Step": ("60 of 100", ""),
        "Best validation log loss": ("0.2500", "at step 60 (best.pt)"),
        "Validation Dice": ("0.75", "at step 60"),
        "Training loss": ("1.667", "at step 60"),
    }
    places = [text.index(part) for part in ('class="tiles"', 'id="picture"', "<svg", "<details>")]
    assert places == sorted(places) and links(page) == ["log.jsonl"]
    for words in ("&lt;x&gt;", "the diffusion begins", "Validation Dice"):
        assert words in text, words
    assert "/data/" not in text and str(tmp_path) not in text
    assert "<x>" not in text and "Gradient norm" not in text and not re.search("https?://", text)


def test_training_writes_its_page(trained):
    text = (trained.parent / "training.html").read_text()
    assert "2 of 2" in text and "Loss" in text and "Gradient norm" in text and 'points="' in text


def test_the_training_page_in_a_browser(browser, tmp_path):
    page = Page(browser, write_training_page(training_run(tmp_path), CONFIG, 100))
    width = "const p = document.getElementById('picture'); return p.complete && p.naturalWidth"
    assert page.wait(width) == 30 and page.text("step") == "Step 60"
    page.resize(400, 850)
    assert page.run("return document.getElementById('picture').getBoundingClientRect().top") < 600
    slide = "const s = document.getElementById('pick'); s.value = 0; s.dispatchEvent(new Event('input'))"
    page.run(slide)
    assert page.wait(width) == 30 and page.text("step") == "Step 30"
    assert page.run("return document.getElementById('picture').src").endswith("validation/step000030.png")
    assert page.complaints() == []
    (tmp_path / "validation" / "step000030.png").unlink()
    page = Page(browser, tmp_path / "training.html")
    page.run(slide)
    assert "was not found; keep this page" in page.wait("return document.getElementById('missing').textContent")


def test_lines_of_the_log_that_are_no_rows_are_left_out_and_counted(tmp_path):
    good = [{"step": 1, "loss": 2}, {"step": 2, "loss": None, "lr": 0.5}]
    bad = [
        [],
        3,
        None,
        {},
        {"loss": 1},
        {"step": "3"},
        {"step": 1.5},
        {"step": 4, "loss": "x"},
        {"step": 5, "loss": [1]},
    ]
    lines = [json.dumps(row) for row in (*bad, *good)]
    (tmp_path / "log.jsonl").write_text("\n".join([*lines, '{"step": 6, "loss": NaN}', '{"step": 7, "lo']))
    assert read_log(tmp_path) == (good, len(bad))
    assert "Loss" in write_training_page(tmp_path, CONFIG, 100).read_text()
