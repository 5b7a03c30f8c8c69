"""Test-time augmentation: members see the image turned, mirrored and scaled, and share the mean over these views."""

import json
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import FAST
from scipy.ndimage import map_coordinates

from guided_diffusion.config.sample_options import SampleOptions
from guided_diffusion.config.settings import members_as_trained
from guided_diffusion.diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.diffusion.losses import class_logits, class_probabilities
from guided_diffusion.diffusion.schedule import noise_schedule
from guided_diffusion.inference.members import draw_members
from guided_diffusion.inference.plan import ONE_STEP, SamplingPlan, plan_sampling, with_members
from guided_diffusion.inference.tta import SYMMETRIES, each_turned, encoded, scaled, scaled_back, turned, turned_back
from guided_diffusion.models.outputs import ModelOutput, select_rows

DIFFUSION = GaussianDiffusion(noise_schedule("cosine", 50, 0.3), objective="x0", mask_loss="bce")
PLAN = SamplingPlan("dpm_solver", (49, 30, 10), 2, symmetric=True)


class Seen(NamedTuple):
    """The fake network's condition."""

    image: torch.Tensor
    coarse: torch.Tensor

    def rows(self, which):
        return select_rows(self, which)


class Fake:
    """Predicts the image itself, and as the coarse mask what lies at the left: it does not turn with the image."""

    mask_channels = 1

    def __init__(self):
        self.encoded = 0

    def encode(self, image, label=None):
        self.encoded += len(image)
        left = torch.linspace(3, -3, image.shape[-1]).expand(image.shape)
        return Seen(image, left.clone())

    def __call__(self, x_t, t, condition):
        return ModelOutput(condition.image, None, condition.coarse)

    def modules(self):
        return []

    def eval(self):
        return self


@pytest.fixture
def image():
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_symmetries_are_eight_and_go_back(image):
    seen = [turned(image, symmetry) for symmetry in SYMMETRIES]
    assert torch.equal(seen[0], image)
    assert len({part.numpy().tobytes() for part in seen}) == 8
    for symmetry, part in zip(SYMMETRIES, seen, strict=True):
        assert torch.equal(turned_back(part, symmetry), image)
    assert torch.equal(each_turned(torch.stack(seen), SYMMETRIES, back=True), image.expand(8, *image.shape))


@pytest.mark.parametrize(("members", "rows"), [(3, None), (8, 5), (11, 4)])
def test_members_answer_as_the_image_lies_and_it_is_encoded_once_for_each_symmetry(image, members, rows):
    model, watched = Fake(), []
    drawn = draw_members(
        model, DIFFUSION, PLAN, image, ["a", "b"], members=members, rows=rows, watch=lambda x, x0: watched.append(x0)
    )
    for member in drawn.soft:
        torch.testing.assert_close(member, torch.sigmoid(image), atol=1e-5, rtol=0)
    assert model.encoded == 2 * 8  # the coarse mask is a mean over all of them, however few the members
    shown = torch.cat(watched[2::3])  # of each pass the last step
    torch.testing.assert_close(shown, (2 * torch.sigmoid(image) - 1).repeat(members, 1, 1, 1), atol=1e-5, rtol=0)


def test_every_member_has_the_mean_of_the_coarse_masks(image):
    drawn = draw_members(Fake(), DIFFUSION, PLAN, image, ["a", "b"], members=8)
    left = torch.sigmoid(torch.linspace(3, -3, 8).expand(8, 8))
    mean = sum(turned_back(left, symmetry) for symmetry in SYMMETRIES) / 8
    torch.testing.assert_close(drawn.coarse, mean.expand(8, 2, 1, 8, 8), atol=1e-5, rtol=0)


def test_an_image_that_is_not_square_is_seen_as_it_is():
    model, image = Fake(), torch.randn(1, 1, 8, 16)
    drawn = draw_members(model, DIFFUSION, PLAN, image, ["a"], members=3)
    assert model.encoded == 1
    torch.testing.assert_close(drawn.soft[2], torch.sigmoid(image), atol=1e-5, rtol=0)


@pytest.mark.parametrize("exclusive", [False, True])
def test_logits_are_the_inverse_of_probabilities(exclusive):
    logits = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    again = class_logits(class_probabilities(logits, exclusive), exclusive)
    torch.testing.assert_close(again, logits)


@pytest.mark.parametrize(
    ("flags", "train", "expected"),
    [
        ({}, {}, (False, "mean")),
        ({}, {"augment": "light", "orientation": "any"}, (True, "mean")),
        ({}, {"augment": "light", "orientation": "upright"}, (False, "mean")),
        ({}, {"augment": "none", "orientation": "any"}, (False, "mean")),
        ({"sampler": "dpm_solver"}, {"condition_steps": 85}, (False, "staple")),
        ({"sampler": "ddpm"}, {}, (False, "staple")),
        ({"fuse": "vote", "symmetries": "all"}, {"condition_steps": 85}, (True, "vote")),
        ({"symmetries": "none"}, {"augment": "light", "orientation": "any"}, (False, "mean")),
    ],
)
def test_what_is_left_open_follows_from_the_training_and_the_sampler(flags, train, expected):
    options = members_as_trained(SampleOptions(**flags), train)
    plan = plan_sampling(options, set(flags), DIFFUSION)
    assert (plan.symmetric, plan.fuse) == expected


SCALES = (0.9, 1.1)
TRAINED = {"augment": "light", "orientation": "any", "condition_steps": 85}


@pytest.fixture
def picture():
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


def counts(size, scale):
    """The weight of each pixel of a view at this scale, [S, S]; a magnified view fades from 3/4 of the way outward."""
    if scale <= 1:
        return torch.ones(size, size)
    outward = torch.arange(float(size)).sub((size - 1) / 2).abs() * scale / (size / 2)  # 1 at the view's edge
    along = torch.where(outward < 0.75, 1, 16 * (1 - outward).clamp(min=0) ** 2)
    return along[:, None] * along


@pytest.mark.parametrize("scale", [0.9, 1.1])
def test_scaling_is_in_float32_under_autocast(scale):
    x = torch.randn(1, 1, 128, 128, generator=torch.Generator().manual_seed(0)).cumsum(dim=-1)  # a slope everywhere
    expected = scaled(x.double(), scale), *scaled_back(x.double(), scale)
    with torch.autocast("cpu", torch.bfloat16):
        found = scaled(x, scale), *scaled_back(x, scale)
    for got, exact in zip(found, expected, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), exact, atol=1e-3, rtol=1e-4)


class Logits(NamedTuple):
    """A condition of logits alone."""

    coarse: torch.Tensor


@pytest.mark.parametrize("exclusive", [False, True])
def test_the_mean_over_views_is_in_float32_under_autocast(exclusive):
    class Model:
        def encode(self, image, label=None):
            return Logits(torch.cat([2 * image, -image], dim=1))

    picture = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    views = {"kept": 1, "symmetries": SYMMETRIES, "scales": (0.9, 1.1), "rows": 8, "exclusive": exclusive}
    expected = class_probabilities(encoded(Model(), picture.double(), None, **views).coarse, exclusive)
    with torch.autocast("cpu", torch.bfloat16):
        found = class_probabilities(encoded(Model(), picture, None, **views).coarse, exclusive)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale", [0.8, 1.25])
def test_scaling_back_is_the_inverse_where_a_pixel_was_seen(scale):
    x = torch.linspace(-1, 1, 32).expand(1, 1, 32, 32) + torch.linspace(0, 1, 32)[:, None]
    again, weight = scaled_back(scaled(x, scale), scale)
    middle = (slice(None), slice(None), slice(5, 27), slice(5, 27))  # elsewhere a magnified view sees a part
    torch.testing.assert_close(again[middle], x[middle], atol=1e-5, rtol=0)
    torch.testing.assert_close(weight[0, 0], counts(32, scale))


class Bordered(Fake):
    """Predicts a little more within two pixels of the edges of whatever it sees, as padding makes networks do."""

    def encode(self, picture, label=None):
        outward = torch.arange(64.0).sub(31.5).abs()
        edge = torch.maximum(outward[:, None], outward) > 29.5
        return Seen(picture, torch.where(edge, 0.02, 0.002).logit().expand(len(picture), 1, 64, 64).clone())


def test_where_a_magnified_view_ends_there_is_no_step():
    once = {"kept": 1, "symmetries": SYMMETRIES[:1], "rows": 8, "exclusive": False}
    seen = encoded(Bordered(), torch.zeros(1, 1, 64, 64), None, scales=(0.9, 1.1), **once).coarse.sigmoid()[0, 0]
    assert seen[32, 0] > 0.005  # the mean of all views that see it
    torch.testing.assert_close(seen[4:-4, 4:-4], torch.full((56, 56), 0.002), atol=5e-4, rtol=0)
    assert (seen[32, :32].diff() < 3e-4).all()  # from the edge to the middle it only falls


def test_every_condition_has_the_mean_over_all_views(picture):
    views = {"symmetries": SYMMETRIES, "scales": (0.8, 1.25)}
    condition = encoded(Fake(), picture, None, kept=3, rows=5, exclusive=False, **views)
    coarse = torch.sigmoid(torch.linspace(3, -3, 8)).expand(1, 1, 8, 8)  # by the fake, of whatever it sees
    total, count = 0, 0
    for symmetry in SYMMETRIES:
        for scale in (0.8, 1, 1.25):
            back = torch.from_numpy(magnified(coarse[0, 0].numpy(), 1 / scale)).float()[None, None]
            weight = counts(8, scale)[None, None]
            total, count = total + turned_back(back * weight, symmetry), count + turned_back(weight, symmetry)
    mean = total / count
    for index, symmetry in enumerate(SYMMETRIES[:3]):
        own = condition.rows(torch.tensor([2 * index, 2 * index + 1]))
        torch.testing.assert_close(own.image, turned(picture, symmetry))
        expected = turned(mean, symmetry).expand(2, 1, 8, 8)
        torch.testing.assert_close(own.coarse.sigmoid(), expected, atol=2e-2, rtol=0)  # borders: cut, not reflected
        torch.testing.assert_close(own.coarse.sigmoid()[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2])


def test_how_many_images_go_through_the_network_at_once_changes_nothing(picture):
    plan = SamplingPlan("dpm_solver", (49, 10), 2, symmetric=True, scales=(0.9, 1.1))
    drawn = [draw_members(Fake(), DIFFUSION, plan, picture, ["a", "b"], members=3, rows=rows) for rows in (None, 1, 5)]
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
    options = members_as_trained(SampleOptions(**flags), train)
    assert plan_sampling(options, set(flags), DIFFUSION).scales == expected


def test_a_plain_unet_has_one_view_unless_more_are_asked_for():
    plan = with_members(ONE_STEP, members_as_trained(SampleOptions(), TRAINED, has_diffusion=False))
    assert not plan.symmetric and not plan.scales
    asked = SampleOptions(symmetries="all", scales="0.9,1.1")
    asked = with_members(ONE_STEP, members_as_trained(asked, TRAINED, has_diffusion=False))
    assert asked.symmetric and asked.scales == (0.9, 1.1)


def test_a_plain_unet_s_answer_is_the_mean_over_its_views(train, sample, pictures):
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
    line = refusal("segmentation_sample", ["--model_path x.pt --scales", value])
    assert f"--scales {value}: must be" in line or f"--scales {value}: holds a number that is not finite" in line
