"""Temperature: masks do not change, the fit recovers a known value, and sampling reads it from the checkpoint."""

import numpy as np
import pytest
from conftest import FAST, TINY, strict_json

from guided_diffusion.checkpoint import load_checkpoint
from guided_diffusion.evaluation.temperature_fit import TEMPERATURES, ExclusiveLosses, LevelTable
from guided_diffusion.inference.temperature import apply_temperature
from guided_diffusion.io.images import read_picture


def test_masks_and_ends_stay_what_they_are():
    p = np.linspace(0, 1, 1001)
    for temperature in (0.3, 1.0, 4.0):
        found = apply_temperature(p, temperature)
        assert np.array_equal(found > 0.5, p > 0.5) and (np.diff(found) >= 0).all()
        assert found[[0, 500, 1000]].tolist() == [0, 0.5, 1] and np.allclose(found, 1 - found[::-1])
        assert np.allclose(apply_temperature(found, 1 / temperature), p)
    assert apply_temperature(np.float32([0.8]), 2.0).dtype == np.float32
    assert apply_temperature(np.array(0.8), 2.0) == pytest.approx(2 / 3)  # odds of 4, their root 2


def test_the_temperature_that_spoilt_a_forecast_is_found_again():
    rng = np.random.default_rng(0)
    p = rng.beta(0.5, 0.5, 200_000)
    y = rng.random(len(p)) < p
    sure = apply_temperature(p, 0.4)  # too sure of itself
    table = LevelTable.of(sure[:100_000], y[:100_000]) + LevelTable.of(sure[100_000:], y[100_000:])
    assert table.fit() == pytest.approx(1 / 0.4, rel=0.03)
    assert table.log_loss(2.5) < table.log_loss()
    clipped = np.clip(np.rint(sure * 65535) / 65535, 0.5 / 65535, 1 - 0.5 / 65535)
    assert table.log_loss() == pytest.approx(-np.mean(np.where(y, np.log(clipped), np.log1p(-clipped))))


def exclusive_forecast(pixels=40_000):
    """Probabilities [3, P] of three classes beside a background, and one-hot labels drawn from them."""
    rng = np.random.default_rng(1)
    p = rng.dirichlet([2, 1.5, 1, 2], pixels).T
    labels = (p.cumsum(axis=0) < rng.random(pixels)).sum(axis=0)
    return p[1:], np.stack([labels == k for k in (1, 2, 3)])


def test_exclusive_classes_stay_a_distribution_at_every_temperature_and_none_overtakes_another():
    p, _ = exclusive_forecast(500)
    for temperature in (0.3, 2.0, 20.0):
        found = apply_temperature(p, temperature, exclusive=True)
        assert found.min() >= 0 and found.sum(axis=0).max() <= 1 + 1e-12
        whole, before = (np.vstack([1 - x.sum(axis=0), x]) for x in (found, p))
        assert np.array_equal(whole.argmax(axis=0), before.argmax(axis=0))
        powers = before.clip(0) ** (1 / temperature)
        assert np.allclose(whole, powers / powers.sum(axis=0), atol=1e-7)
    assert apply_temperature(np.full((3, 2), 1 / 3), 2.0, exclusive=True).sum(axis=0) == pytest.approx(1)
    assert np.allclose(apply_temperature(p[:1], 1.7, exclusive=True), apply_temperature(p[:1], 1.7))
    assert apply_temperature(p.astype(np.float32), 2.0, exclusive=True).dtype == np.float32


def test_the_temperature_of_exclusive_classes_is_found_by_their_own_log_loss():
    p, y = exclusive_forecast()
    sure = apply_temperature(p, 0.4, exclusive=True)
    table = ExclusiveLosses.of(sure[:, :9000], y[:, :9000]) + ExclusiveLosses.of(sure[:, 9000:], y[:, 9000:])
    assert table.count == p.shape[1] and TEMPERATURES[32] == pytest.approx(1)
    assert table.fit() == pytest.approx(1 / 0.4, rel=0.03) and table.log_loss(2.5) < table.log_loss()
    raters = ExclusiveLosses.of(np.full((2, 1), 0.25), np.array([[0.5], [0.5]]))
    assert raters.log_loss() == pytest.approx(np.log(4)) and raters.fit() > 1  # between two, none for the background


def test_certain_pixels_count_each_with_its_own_truth():
    """Whole images are nearly all background of p = 0; they are summed up by class before any logarithm is taken."""
    p, y = exclusive_forecast(1000)
    p[:, :800] = np.eye(4)[1:, np.random.default_rng(2).integers(0, 4, 800)]
    logits, true = (np.vstack([1 - x.sum(axis=0), x]) for x in (p, y))
    logits = np.log(np.clip(logits, 0.5 / 65535, 1 - 0.5 / 65535)) / TEMPERATURES[40]
    expected = np.log(np.exp(logits).sum(axis=0)) - (logits * true).sum(axis=0)
    assert ExclusiveLosses.of(p, y).log_loss(TEMPERATURES[40]) == pytest.approx(expected.mean())


@pytest.fixture(scope="module")
def held_out(script, pictures, tmp_path_factory):
    """A checkpoint that holds out two of four pictures."""
    out = tmp_path_factory.mktemp("held")
    flags = f"{TINY} --max_steps 2 --lr 1e-2 --val_fraction 0.4"
    script("segmentation_train", ["--data_name FOLDER --data_dir", pictures, "--out_dir", out, flags])
    return out / "model000002.pt"


def test_a_checkpoint_gets_its_temperature_and_sampling_applies_it(
    script, sample, refusal, held_out, pictures, tmp_path, capsys
):
    plain = sample(held_out, pictures, f"{FAST} --split val --uncertainty_maps True", out="plain")
    manifest = strict_json(plain / "manifest.json")
    assert (manifest["data"]["split"], manifest["settings"]["temperature"]) == ("val", 1)
    weights = load_checkpoint(held_out).model
    fit = ["--pred_dir", plain, "--fit_temperature", held_out]
    script("segmentation_eval", fit)
    checkpoint = load_checkpoint(held_out)
    fitted = checkpoint.config["calibration"]
    assert f"temperature {fitted['temperature']:g} fitted by log loss on" in capsys.readouterr().out
    assert fitted["split"] == "val" and fitted["log_loss"] <= fitted["log_loss_before"]
    assert all((checkpoint.model[name] == value).all() for name, value in weights.items())

    warm = sample(held_out, pictures, f"{FAST} --split val", out="warm")
    assert strict_json(warm / "manifest.json")["settings"]["temperature"] == fitted["temperature"] != 1
    for path in sorted((plain / "probability").glob("*.png")):
        mask = f"masks/{path.name}"
        assert (plain / mask).read_bytes() == (warm / mask).read_bytes()
        before, after = (read_picture(folder / "probability" / path.name)[0] / 255 for folder in (plain, warm))
        rounding = 2e-5 / min(1, fitted["temperature"])  # of 16 bit, as much steeper as the temperature is low
        assert np.allclose(after, apply_temperature(before, fitted["temperature"]), atol=rounding)
        entropy = read_picture(plain / "entropy" / path.name)[0] / 255
        inside = (before > 0.01) & (before < 0.99)
        p = before[inside]
        assert np.allclose(entropy[inside], -p * np.log2(p) - (1 - p) * np.log2(1 - p), atol=1e-3)
        assert {"variance", "mutual_information"} <= {folder.name for folder in plain.iterdir()}
    assert strict_json(sample(held_out, pictures, f"{FAST} --temperature 1.5", out="own") / "manifest.json")[
        "settings"
    ]["temperature"] == pytest.approx(1.5)
    script("segmentation_eval", fit)  # again, on the results of before: the same
    again = load_checkpoint(held_out).config["calibration"]
    assert again == fitted
    script("segmentation_eval", ["--pred_dir", plain, "--fit_temperature", held_out.parent])  # its last.pt, as it was
    assert load_checkpoint(held_out.with_name("last.pt")).config["calibration"] == fitted
    (plain / "manifest.json").write_text('{"checkpoint_sha256": "of another"}')
    line = [*fit, "--data_name FOLDER --data_dir", pictures]
    assert "not with this file as it is; sample with it first" in refusal("segmentation_eval", line)
