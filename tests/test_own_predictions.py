"""A network that is shown its own predictions, in training and in sampling."""

import json

import numpy as np
import pytest
import torch
from conftest import FAST, TINY
from oracles import network, randn

from guided_diffusion.checkpoint import load_checkpoint
from guided_diffusion.config import DiffusionOptions, ModelOptions, build
from guided_diffusion.draws import chances_for_items
from guided_diffusion.errors import UserError
from guided_diffusion.files import read_picture
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.medsegdiff import build_model
from guided_diffusion.model_output import ModelOutput
from guided_diffusion.sampling import SamplingPlan, draw_members
from guided_diffusion.schedule import noise_schedule
from guided_diffusion.tiles import Tiled
from guided_diffusion.train_options import TrainOptions

SMALL = {"image_size": 16, "num_channels": 8, "channel_mult": "1,2", "num_res_blocks": 1, "attention_resolutions": "8"}
TARGETS = [("x0", "bce"), ("x0", "mse"), ("eps", "mse"), ("v", "mse")]


def diffusion_of(objective="x0", mask_loss="bce", **options):
    return GaussianDiffusion(noise_schedule("cosine", 50, 0.3), objective=objective, mask_loss=mask_loss, **options)


class Recorder:
    """`oracles.network` of what it is shown, which it keeps."""

    def __init__(self, self_condition):
        self.self_condition, self.calls = self_condition, []

    def __call__(self, x, t, condition):
        self.calls.append((x, t, torch.is_grad_enabled()))
        return ModelOutput(network(x[:, :1] + x[:, 1:].sum(dim=1, keepdim=True), t), None, None)


def items(n=4):
    mask = (randn(n, 1, 8, 8) > 0.3).double()
    return mask, torch.tensor([0, 10, 30, 49])[:n], randn(n, 1, 8, 8, seed=1)


# ---- beside x_t ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("objective", "mask_loss"), TARGETS)
def test_each_step_of_sampling_sees_the_prediction_of_the_one_before(objective, mask_loss):
    diffusion, model, x = diffusion_of(objective, mask_loss), Recorder(True), randn(2, 1, 8, 8)
    denoise = diffusion.denoiser(model, None)
    first, _ = denoise(x, 40), denoise(0.5 * x, 20)
    assert torch.equal(model.calls[0][0], x)  # nothing was predicted before, which the network takes as 0
    assert torch.equal(model.calls[1][0], torch.cat([0.5 * x, first.x0], dim=1))
    diffusion.denoiser(model, None)(x, 40)  # another run does not go on from this one
    assert torch.equal(model.calls[2][0], x)


@pytest.mark.parametrize(("objective", "mask_loss"), TARGETS)
def test_in_training_a_chosen_row_sees_what_the_network_predicts_there_without_learning_from_it(objective, mask_loss):
    diffusion, model, (mask, t, noise) = diffusion_of(objective, mask_loss), Recorder(True), items()
    chances = torch.tensor([[0.9, 0.2], [0.9, 0.7], [0.9, 0.49], [0.9, 0.5]])
    diffusion.training_losses(model, mask, None, t, noise, chances=chances)
    (x_t, _, learning), (seen, _, learns) = model.calls
    assert not learning and learns and x_t.shape == (4, 1, 8, 8)
    expected = diffusion.to_x0(diffusion.activate(diffusion.prediction(model(x_t, t, None), x_t, t)), x_t, t)
    expected = expected.clamp(-1, 1) * torch.tensor([1, 0, 1, 0])[:, None, None, None]
    torch.testing.assert_close(seen, torch.cat([x_t, expected], dim=1))


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_network_takes_x_t_alone_as_a_prediction_of_0_and_heeds_another(version):
    torch.manual_seed(0)
    model = build_model(build(ModelOptions, {**SMALL, "version": version, "self_condition": True}), 2, 1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        condition, t = model.encode(randn(2, 2, 16, 16, dtype=torch.float32)), torch.tensor([3, 9])
        x_t, last = randn(2, 1, 16, 16, dtype=torch.float32, seed=2), randn(2, 1, 16, 16, dtype=torch.float32, seed=3)
        alone, told = (model(torch.cat(seen, dim=1), t, condition).prediction for seen in ([x_t], [x_t, last]))
        zero = model(torch.cat([x_t, 0 * last], dim=1), t, condition).prediction
    assert torch.equal(alone, zero) and (alone - told).abs().max() > 1e-3 and told.shape == (2, 1, 16, 16)


def test_in_tiles_each_window_sees_its_part_of_the_prediction():
    model = Recorder(True)
    tiled = Tiled(_Encoding(model), 8, 0.0, rows=None)
    image, x, last = torch.zeros(1, 1, 8, 16), randn(1, 1, 8, 16).float(), randn(1, 1, 8, 16, seed=4).float()
    output = tiled(torch.cat([x, last], dim=1), torch.tensor([5]), tiled.encode(image))
    assert tiled.self_condition and output.prediction.shape == x.shape
    torch.testing.assert_close(
        output.prediction[..., :8], network(x[..., :8] + last[..., :8], torch.tensor([5])).float()
    )


class _Encoding(torch.nn.Module):
    mask_channels = 1

    def __init__(self, model):
        super().__init__()
        self.answer, self.self_condition = model, model.self_condition

    def encode(self, image, label=None):
        return _Nothing(torch.zeros(len(image)))

    def forward(self, x, t, condition):
        return self.answer(x, t, condition)


class _Nothing(tuple):
    def __new__(cls, values):
        return super().__new__(cls, (values,))

    def rows(self, which):
        return _Nothing(self[0][which])


@pytest.mark.parametrize("flag", ["self_condition True", "own_predictions 0.5"])
def test_the_plain_unet_has_no_predictions_to_see(refusal, pictures, tmp_path, flag):
    line = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path, TINY, f"--version unet --{flag}"]
    told = refusal("segmentation_train", line)
    assert told == f"error: --{flag.split()[0]} belongs to --version v1 or v2; leave it out"


# ---- as the mask -----------------------------------------------------------------------------------------------------


def test_a_chosen_row_s_x_t_comes_from_the_mask_that_is_predicted_from_noise_alone():
    diffusion, model, (mask, t, noise) = diffusion_of(own_predictions=0.5), Recorder(False), items()
    chances = torch.tensor([[0.2, 0.9], [0.7, 0.9], [0.49, 0.9], [0.5, 0.9]])
    losses = diffusion.training_losses(model, mask, None, t, noise, chances=chances)
    (first, times, learning), (x_t, _, learns) = model.calls
    assert torch.equal(first, noise) and times.tolist() == [49] * 4 and not learning and learns
    own = diffusion.activate(network(noise, times))
    expected = torch.where(
        torch.tensor([True, False, True, False])[:, None, None, None],
        diffusion.q_sample(own, t, noise),
        diffusion.q_sample(2 * mask - 1, t, noise),
    )
    torch.testing.assert_close(x_t, expected)
    # What is learned is the true mask, in any row.
    bce = torch.nn.functional.binary_cross_entropy_with_logits(network(x_t, t), mask, reduction="none")
    torch.testing.assert_close(losses["mask"], bce.mean(dim=(1, 2, 3)))


def test_only_a_network_that_predicts_the_mask_learns_from_its_own():
    with pytest.raises(UserError, match="--own_predictions 0.5 goes with --objective x0, not eps"):
        build(DiffusionOptions, {"objective": "eps", "own_predictions": 0.5})


def test_chances_follow_from_the_item_s_place_in_the_run_alone():
    options = build(TrainOptions, {"noise_draws": 3})
    whole = chances_for_items(6, options, step=4, first=0)
    assert whole.shape == (6, 3, 2) and len(set(whole.flatten().tolist())) == 36
    assert torch.equal(chances_for_items(2, options, step=4, first=3), whole[3:5])
    assert not torch.equal(chances_for_items(6, options, step=5, first=0), whole)


@pytest.mark.parametrize("flags", ["--self_condition True", "--own_predictions 1"])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_run_with_them_resumes_to_the_same_weights_and_is_sampled(script, sample, pictures, tmp_path, flags, version):
    def train(out, steps, more):
        line = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path / out, TINY]
        script("segmentation_train", [*line, f"--version {version} {flags} --max_steps {steps}", more])
        return tmp_path / out / f"model{steps:06d}.pt"

    whole, _ = train("whole", 4, ""), train("part", 2, "")
    resumed = train("part", 4, "--resume_checkpoint auto")
    first, second = (load_checkpoint(path).model for path in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len(list((sample(whole, pictures) / "masks").iterdir())) == 4


# ---- from the coarse mask --------------------------------------------------------------------------------------------


class Coarse(torch.nn.Module):
    """Answers with the true x_0 where x_t says it, and has a coarse mask: of the image alone, or beside an x_t."""

    mask_channels, self_condition = 1, False

    def __init__(self, told_early):
        super().__init__()
        self.told_early, self.times, self.seen = told_early, [], []

    def encode(self, image, label=None):
        return (_Told if self.told_early else _Untold)(image[:, :1])

    def forward(self, x, t, condition):
        self.times.append(int(t[0]))
        self.seen.append(x)
        return ModelOutput(x, None, condition[0])


class _Told(_Nothing):
    _fields = ("coarse",)

    @property
    def coarse(self):
        return self[0]

    def rows(self, which):
        return _Told(self[0][which])


class _Untold(_Nothing):
    _fields = ("image",)


@pytest.mark.parametrize("told_early", [True, False])
def test_the_first_x_t_is_the_coarse_mask_with_that_time_s_noise(told_early):
    diffusion, model = diffusion_of(), Coarse(told_early)
    image = 3 * randn(2, 1, 8, 8, dtype=torch.float32)
    plan = SamplingPlan("ddim", (20, 10, 0), begin_at=0.4)
    draw_members(model, diffusion, plan, image, ["a", "b"], members=3)
    asked = [] if told_early else [49]  # v1 tells its coarse mask only beside some x_t: noise alone
    assert model.times == [*asked, 20, 10, 0]
    noise_only = Coarse(True)
    draw_members(noise_only, diffusion, SamplingPlan("ddim", (20,)), image, ["a", "b"], members=3)
    x0 = 2 * torch.sigmoid(image).repeat(3, 1, 1, 1) - 1
    expected = diffusion.q_sample(x0, torch.full((6,), 20), noise_only.seen[0])
    torch.testing.assert_close(model.seen[len(asked)], expected)


def test_the_schedule_from_there_on_has_the_same_noise_at_each_time():
    schedule = diffusion_of().schedule
    part = schedule.beginning_at(0.3)
    np.testing.assert_array_equal(part.alphas_bar, schedule.alphas_bar[:15])
    assert len(schedule.beginning_at(1)) == 50 and len(schedule.beginning_at(1e-6)) == 1


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_from_the_shell(script, sample, refusal, pictures, tmp_path, version):
    line = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path / "run", TINY]
    script("segmentation_train", [*line, f"--version {version} --max_steps 2"])
    checkpoint = tmp_path / "run/model000002.pt"
    results = sample(checkpoint, pictures, f"{FAST} --begin_at 0.4 --save_samples True")
    settings = json.loads((results / "manifest.json").read_text())["settings"]
    assert settings["begin_at"] == 0.4 and settings["timesteps"][0] == 399
    other = sample(checkpoint, pictures, f"{FAST} --save_samples True", out="other")
    first, second = (read_picture(next((path / "probability").iterdir())) for path in (results, other))
    assert (first != second).any()
    manifest = json.loads((other / "manifest.json").read_text())
    del manifest["settings"]["begin_at"]  # as results from before there was one, which are gone on with
    (other / "manifest.json").write_text(json.dumps(manifest))
    sample(checkpoint, pictures, f"{FAST} --save_samples True", out="other")
    line = ["--model_path", checkpoint, "--data_dir", pictures, "--out_dir", tmp_path / "no"]
    assert refusal("segmentation_sample", [*line, "--begin_at 0.01 --diffusion_steps 20"]) == (
        "error: --diffusion_steps 20: the checkpoint was trained with 1000, of which --begin_at 0.01 leaves 10; use "
        "that or fewer"
    )
