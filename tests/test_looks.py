"""Looks at an image at other scales: the resampling against SciPy, the mean over looks by hand, and its flags."""

import json

import numpy as np
import pytest
import torch
from conftest import FAST
from scipy.ndimage import map_coordinates
from test_symmetries import DIFFUSION, Fake

from guided_diffusion.looks import encoded, scaled, scaled_back
from guided_diffusion.plan import ONE_STEP, SCALES, plan_sampling, settle_members
from guided_diffusion.run_options import SampleOptions
from guided_diffusion.sampling import SamplingPlan, draw_members
from guided_diffusion.symmetries import SYMMETRIES, turned, turned_back

TRAINED = {"augment": "light", "orientation": "any", "condition_steps": 85}


@pytest.fixture
def image():
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def magnified(x, scale):
    """[H, W] magnified about its middle, reflected beyond its borders, by SciPy."""
    places = [(np.arange(n) + 0.5 - n / 2) / scale + n / 2 - 0.5 for n in x.shape]
    return map_coordinates(x, np.meshgrid(*places, indexing="ij"), order=1, mode="reflect")


@pytest.mark.parametrize("scale", [0.5, 0.8, 1, 1.25, 2])
@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
def test_an_image_is_scaled_about_its_middle_and_reflected_beyond_its_borders(scale, size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = np.stack([[magnified(channel, scale) for channel in row] for row in x.numpy()])
    torch.testing.assert_close(scaled(x, scale), torch.from_numpy(expected))


@pytest.mark.parametrize("scale", [0.8, 1.25])
def test_scaling_back_is_the_inverse_where_a_pixel_was_seen(scale):
    x = torch.linspace(-1, 1, 32).expand(1, 1, 32, 32) + torch.linspace(0, 1, 32)[:, None]
    again, inside = scaled_back(scaled(x, scale), scale)
    middle = (slice(None), slice(None), slice(5, 27), slice(5, 27))  # of the rest a magnified look sees a part
    torch.testing.assert_close(again[middle], x[middle], atol=1e-5, rtol=0)
    seen = torch.arange(32.0).sub(15.5).abs() * scale <= 16
    assert torch.equal(inside[0, 0].bool(), seen[:, None] & seen)


def test_every_condition_has_the_mean_of_what_each_look_told(image):
    condition = encoded(Fake(), image, None, kept=3, symmetries=SYMMETRIES, scales=(0.8, 1.25), rows=5, exclusive=False)
    told = torch.sigmoid(torch.linspace(3, -3, 8)).expand(1, 1, 8, 8)  # by the fake, of whatever it sees
    total, looks = 0, 0
    for symmetry in SYMMETRIES:
        for scale in (0.8, 1, 1.25):
            back = torch.from_numpy(magnified(told[0, 0].numpy(), 1 / scale)).float()[None, None]
            seen = torch.arange(8.0).sub(3.5).abs() * scale <= 4
            inside = (seen[:, None] & seen).float()[None, None]
            total, looks = total + turned_back(back * inside, symmetry), looks + turned_back(inside, symmetry)
    mean = total / looks
    for index, symmetry in enumerate(SYMMETRIES[:3]):
        own = condition.rows(torch.tensor([2 * index, 2 * index + 1]))
        torch.testing.assert_close(own.image, turned(image, symmetry))
        expected = turned(mean, symmetry).expand(2, 1, 8, 8)
        torch.testing.assert_close(own.coarse.sigmoid(), expected, atol=2e-2, rtol=0)  # borders: cut, not reflected
        torch.testing.assert_close(own.coarse.sigmoid()[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2])


def test_how_many_images_go_through_the_network_at_once_changes_nothing(image):
    plan = SamplingPlan("dpm_solver", (49, 10), 2, "ode", "uniform", symmetric=True, scales=(0.9, 1.1))
    drawn = [draw_members(Fake(), DIFFUSION, plan, image, ["a", "b"], members=3, rows=rows) for rows in (None, 1, 5)]
    for other in drawn[1:]:
        torch.testing.assert_close(other.coarse, drawn[0].coarse)


@pytest.mark.parametrize(
    ("flags", "train", "expected"),
    [
        ({}, TRAINED, SCALES),
        ({}, TRAINED | {"orientation": "upright"}, SCALES),
        ({}, TRAINED | {"augment": "none"}, ()),
        ({"scales": "none"}, TRAINED, ()),
        ({"scales": "0.5,2"}, {}, (0.5, 2.0)),
    ],
)
def test_the_scales_follow_from_the_training_where_they_are_left_open(flags, train, expected):
    options = SampleOptions(**flags)
    assert settle_members(plan_sampling(options, set(flags), DIFFUSION), options, train, False).scales == expected


def test_a_plain_unet_looks_once_unless_it_is_asked_to_look_again():
    assert settle_members(ONE_STEP, SampleOptions(), TRAINED, False) == ONE_STEP
    asked = settle_members(ONE_STEP, SampleOptions(symmetries="all", scales="0.9,1.1"), TRAINED, False)
    assert asked.symmetric and asked.scales == (0.9, 1.1) and not asked.coupled


def test_a_plain_unet_s_answer_is_the_mean_over_its_looks(train, sample, pictures):
    checkpoint = train("FOLDER", pictures, "--version unet --lr 1e-2", steps=3)
    once = sample(checkpoint, pictures, FAST, "once")
    again = sample(checkpoint, pictures, f"{FAST} --symmetries all --scales 0.9,1.1", "again")
    plan = json.loads((again / "manifest.json").read_text())["settings"]
    assert plan["symmetric"] and plan["scales"] == [0.9, 1.1]
    probabilities = [sorted((folder / "probability").iterdir()) for folder in (once, again)]
    assert [p.name for p in probabilities[0]] == [p.name for p in probabilities[1]]
    assert any(a.read_bytes() != b.read_bytes() for a, b in zip(*probabilities, strict=True))


@pytest.mark.parametrize("value", ["3", "0.4", "1", "0.9,nan", "wide"])
def test_scales_that_make_no_sense_are_refused(refusal, value):
    assert f"--scales {value}: must be" in refusal("segmentation_sample", ["--model_path x.pt --scales", value])
