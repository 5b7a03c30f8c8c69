"""summary.json and curves.json of a stranger: read as they were written, else refused in one line."""

import copy
import json

import pytest
from helpers import evaluation_of

from guided_diffusion.evaluation.evaluate import write_evaluation
from guided_diffusion.evaluation.summary_file import read_curves, read_summary
from guided_diffusion.report.figures import charts_of, table_of
from guided_diffusion.runtime.errors import UserError

FIGURES = {"dice": 0.5, "iou": 0.4, "expected_dice": 0.6}
SIZES = {"sizes": [1, 2], "dice": [{"mean": 0.5, "low": 0.4, "high": 0.6}] * 2, "enough": 1}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(summary, curves) as an evaluation of two classes writes them."""
    folder = tmp_path_factory.mktemp("evaluation")
    figures = {key: (value, value / 2) for key, value in FIGURES.items()}
    write_evaluation(evaluation_of(("liver", "tumour"), a=figures, b=figures), folder)
    return [json.loads((folder / name).read_text()) for name in ("summary.json", "curves.json")]


def refusal(read, value, folder):
    path = folder / "x.json"
    path.write_text(json.dumps(value))
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and message.isprintable()
    return message


def test_what_an_evaluation_writes_is_read(written, tmp_path):
    for read, value in zip((read_summary, read_curves), written, strict=True):
        (tmp_path / "x.json").write_text(json.dumps(value))
        assert read(tmp_path / "x.json") == value
    assert "Dice" in table_of(written[0])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("ensemble", None, '"ensemble" must be an object {...}, not null'),
        ("ensemble", {}, 'has no number of "cases"'),
        ("ensemble", {"cases": 1, "dice": 0.5}, '"ensemble'),
        ("sample", {"n": 1}, '"sample" has no "mean"'),
        ("sample", {"n": 1, "mean": None, "median": 1, "std": 1}, 'has "n": 1 in "sample", but no mean'),
        ("sample", {"n": "1", "mean": 1, "median": 1, "std": 1}, '"sample.n" must be a whole number, not text'),
        ("diversity", [], '"diversity" must be an object'),
        ("uncertainty", {"x": "y"}, '"uncertainty'),
        ("calibration", {"ece": "0.1"}, '"calibration'),
        ("classes", {"liver": {}}, 'has no "ensemble"'),
        ("missing", "2", '"missing" must be a whole number, not text'),
    ],
)
def test_summaries_of_wrong_types(written, tmp_path, key, value, words):
    assert words in refusal(read_summary, {**copy.deepcopy(written[0]), key: value}, tmp_path)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "the file must be an object {...}, not a list"),
        ({"all": []}, '"all" must be an object'),
        ({"all": {"reliability": {"probability": {"probability": [1], "truth": []}}}}, "lists of unequal lengths"),
        ({"all": {"retention": {"x": {"kept": [0, 1], "error": [1]}}}}, 'unequal lengths in "retention.x"'),
        ({"all": {"retention": {"x": {"kept": [0], "error": [None]}}}}, "must be a number, not null"),
        ({"classes": {"a": {"reliability": {"x": {"probability": ["1"], "truth": [1]}}}}}, "not text"),
        ({"ensemble_size": {"sizes": [1]}}, '"ensemble_size" has no'),
        ({"ensemble_size": {**SIZES, "sizes": [1]}}, 'lists of unequal lengths, or no figure, in "ensemble_size"'),
        ({"ensemble_size": {**SIZES, "sizes": [], "dice": []}}, "no figure"),
        ({"ensemble_size": {**SIZES, "enough": "1"}}, "must be a whole number, not text"),
    ],
)
def test_curves_of_wrong_types(tmp_path, value, words):
    assert words in refusal(read_curves, value, tmp_path)


def test_curves_that_fit_are_drawn(tmp_path):
    diagram = {"probability": [0.1, None], "truth": [None, 0.2]}
    curves = {
        "all": {"reliability": {"probability": diagram}, "retention": {"x": {"kept": [0.5, 1], "error": [0.1, 0.2]}}},
        "ensemble_size": SIZES,
    }
    (tmp_path / "x.json").write_text(json.dumps(curves))
    assert len(charts_of([], [], read_curves(tmp_path / "x.json"))) == 3
