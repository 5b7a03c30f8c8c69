"""Tiles: windows blended as MONAI blends them, one field of noise for a member, and images that need none untouched."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import FAST, TINY, files
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from guided_diffusion.checkpoint import load_checkpoint
from guided_diffusion.config.fields import build
from guided_diffusion.config.options import DiffusionOptions, ModelOptions
from guided_diffusion.diffusion.gaussian_diffusion import build_diffusion
from guided_diffusion.inference.members import answer_in_one_pass, draw_members
from guided_diffusion.inference.plan import NO_STEPS, SamplingPlan
from guided_diffusion.inference.segmenter import Segmenter
from guided_diffusion.inference.tiles import Tiled, window_weights, windows_of
from guided_diffusion.io.nifti import read_nifti
from guided_diffusion.models.medsegdiff import build_model
from guided_diffusion.models.outputs import ModelOutput, PlainCondition

SIZE = 16
PLAN = SamplingPlan("ddpm", (900, 500, 100))


def model_of(version, **options):
    torch.manual_seed(0)
    sizes = {"image_size": SIZE, "num_channels": 8, "channel_mult": "1,2", "num_res_blocks": 1}
    model = build_model(build(ModelOptions, {"version": version, **sizes, **options}), 2, 1, 3)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def image_of(height, width, count=1):
    return torch.randn(count, 2, height, width, generator=torch.Generator().manual_seed(1))


def draw(model, image, members=3, plan=PLAN, **options):
    diffusion = build_diffusion(build(DiffusionOptions, {}))
    names = [f"case{n}" for n in range(len(image))]
    return draw_members(model, diffusion, plan, image, names, members=members, **options)


def test_windows_cover_the_image_and_overlap():
    for shape, overlap in (((40, 33), 0.25), ((16, 50), 0.5), ((17, 16), 0.0), ((16, 16), 0.25)):
        covered, windows = np.zeros(shape), windows_of(shape, SIZE, overlap)
        for rows, columns in windows:
            assert rows.stop - rows.start == columns.stop - columns.start == SIZE
            covered[rows, columns] += 1
        assert covered.min() == 1
        starts = sorted({rows.start for rows, _ in windows})
        assert all(later - start <= SIZE * (1 - overlap) for start, later in zip(starts, starts[1:], strict=False))


def test_windows_and_their_weights_are_monai_s():
    from monai.data.utils import compute_importance_map, dense_patch_slices

    for shape, overlap, interval in (((40, 33), 0.25, 12), ((17, 16), 0.0, 16), ((50, 77), 0.9, 1)):
        assert windows_of(shape, SIZE, overlap) == dense_patch_slices(shape, (SIZE, SIZE), (interval, interval))
    for size in (1, 16, 37):
        expected = compute_importance_map((size, size), mode="gaussian", sigma_scale=0.125, dtype=torch.float32)
        assert torch.equal(window_weights(size), expected)


def test_a_network_in_windows_is_monai_s_sliding_window():
    from monai.inferers import sliding_window_inference

    model, image = model_of("unet"), image_of(40, 27)
    for overlap in (0.25, 0.5):
        tiled = Tiled(model, SIZE, overlap, rows=4)
        with torch.inference_mode():
            got = tiled(torch.zeros(1, 1, 40, 27), torch.zeros(1), tiled.encode(image)).prediction
            expected = sliding_window_inference(
                image, SIZE, 3, lambda x: model.encode(x).logits, overlap=overlap, mode="gaussian"
            )
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


class Pointwise(nn.Module):
    """A network that sees single pixels, so that windows make no difference. seen: every x_t that it was given."""

    mask_channels, label_embedding = 1, None

    def __init__(self):
        super().__init__()
        self.seen = []

    def encode(self, image, label=None):
        return PlainCondition(image)

    def forward(self, x_t, t, condition):
        image = condition.logits
        self.seen.append(x_t)
        prediction = image[:, :1] + 0.3 * x_t + t[:, None, None, None] / 1000
        return ModelOutput(prediction, torch.tanh(image[:, 1:] * x_t), image[:, 1:] - 1)


@pytest.mark.parametrize("rows", [1, 5, 100])
def test_a_pointwise_network_draws_what_it_draws_on_the_whole_image(rows):
    """Noise, learned variance, labels of images and members, coarse masks: all are in their places."""
    image = image_of(37, 20, count=2)
    expected = draw(Pointwise(), image)
    got = draw(Tiled(Pointwise(), SIZE, 0.25, rows), image, rows=None if rows > 1 else 2)
    torch.testing.assert_close(got.soft, expected.soft, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.coarse, expected.coarse, rtol=1e-4, atol=1e-5)


def test_the_answer_in_one_pass_is_the_coarse_mask_of_the_tiles():
    model, image = Tiled(model_of("v2"), SIZE, 0.25, rows=4), image_of(37, 20, count=2)
    answer = answer_in_one_pass(model, build_diffusion(build(DiffusionOptions, {})), NO_STEPS, image)
    drawn = draw(model, image, members=1)
    assert answer.soft.std() > 0.01
    torch.testing.assert_close(answer.soft, drawn.coarse, atol=1e-5, rtol=0)


@pytest.mark.parametrize("height", [SIZE + 5, 40])
def test_tiles_are_blended_in_float32_under_autocast(height):
    network, image = Pointwise(), image_of(height, 20)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        tiled = Tiled(network, SIZE, 0.25, rows=4)
        condition = tiled.encode(image)
        got = tiled(image[:, :1], torch.zeros(1), condition)
        blended = condition.blended(condition.conditions.logits.bfloat16())
    assert got.coarse.dtype == blended.dtype == torch.float32
    torch.testing.assert_close(got.coarse, image[:, 1:] - 1, atol=1e-6, rtol=0)
    torch.testing.assert_close(blended, image.bfloat16().float(), atol=1e-6, rtol=0)


def test_overlapping_windows_share_the_noise_of_a_member():
    network = Pointwise()
    draw(Tiled(network, SIZE, 0.5, rows=100), image_of(SIZE, 24), members=2)
    first = network.seen[0]  # windows at columns 0 and 8, each of two members
    assert first.shape == (4, 1, SIZE, SIZE)
    assert torch.equal(first[0, ..., 8:], first[2, ..., :8]) and torch.equal(first[1, ..., 8:], first[3, ..., :8])
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize(
    "version, options", [("v1", {"learn_sigma": True, "class_cond": True}), ("v2", {"ss_blocks": 1}), ("unet", {})]
)
def test_masks_depend_neither_on_how_many_windows_meet_in_a_pass_nor_on_other_cases(version, options):
    model, image = model_of(version, **options), image_of(24, 20, count=2)
    label = torch.tensor([2, 0]) if "class_cond" in options else None
    whole = draw(Tiled(model, SIZE, 0.25, rows=100), image, members=2, label=label)
    assert whole.soft.shape == (2, 2, 1, 24, 20) and (whole.coarse is None) == (version == "unet")
    for rows in (1, 3):
        part = draw(Tiled(model, SIZE, 0.25, rows), image, members=2, label=label, rows=rows)
        torch.testing.assert_close(part.soft, whole.soft, rtol=1e-3, atol=1e-4)
    alone = draw(Tiled(model, SIZE, 0.25, rows=2), image[:1], members=1, label=None if label is None else label[:1])
    torch.testing.assert_close(alone.soft[0, 0], whole.soft[0, 0], rtol=1e-3, atol=1e-4)


def flops(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("version, options", [("v1", {}), ("v2", {"ss_blocks": 1}), ("unet", {})])
def test_a_tiled_image_costs_as_many_operations_as_its_windows(version, options):
    """Each window is encoded once, for all members and steps; each step then costs the denoiser alone."""
    model, image, members = model_of(version, **options), image_of(40, 33), 3
    window, windows = image_of(SIZE, SIZE), len(windows_of((40, 33), SIZE, 0.25))
    tiled = Tiled(model, SIZE, 0.25, rows=4)
    with torch.inference_mode():
        condition = model.encode(window)
        encoding = flops(lambda: model.encode(window))
        step = flops(lambda: model(torch.zeros(1, 1, SIZE, SIZE), torch.zeros(1), condition))
    expected = windows * (encoding + len(PLAN.timesteps) * members * step)
    assert 0.98 * expected < flops(lambda: draw(tiled, image, members=members)) <= expected
    if version == "v2":
        diffusion = build_diffusion(build(DiffusionOptions, {}))
        answer = flops(lambda: answer_in_one_pass(tiled, diffusion, NO_STEPS, image))
        assert answer == windows * encoding


# ---- by the scripts ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A FOLDER data set of a wide picture, one of the network's 32 pixels and a small one."""
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir()
    for name, (height, width) in {"a_wide": (20, 75), "b_fits": (32, 32), "c_small": (24, 30)}.items():
        smooth = F.interpolate(torch.from_numpy(rng.random((1, 3, 4, 4))), (height, width), mode="bilinear")[0]
        image = (255 * smooth.permute(1, 2, 0)).numpy().astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{name}.png")
        Image.fromarray(np.uint8(image[..., 0] > 140) * 255).save(folder / "masks" / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def cropped(script, large, tmp_path_factory):
    """A checkpoint of 2 steps on crops of `large`, watched meanwhile."""
    out = tmp_path_factory.mktemp("cropped")
    data = ["--data_name FOLDER --data_dir", large, "--out_dir", out]
    watched = "--sample_interval 2 --val_cases 3"
    script("segmentation_train", [*data, TINY, f"--max_steps 2 --lr 1e-2 --crop True --augment strong {watched}"])
    return out / "model000002.pt"


def pixels(results, kind="probability"):
    return {path.name: np.asarray(Image.open(path)) for path in sorted((results / kind).iterdir())}


def test_only_larger_images_are_tiled_and_nothing_is_without_the_flag(sample, trained, large, capsys):
    whole = pixels(sample(trained, large, f"{FAST} --batch_size 1"))  # in tiles there is one image to a batch, too
    assert "--tile" not in capsys.readouterr().out
    results = sample(trained, large, f"{FAST} --tile True --debug True", out="tiled")
    assert "--tile True: the checkpoint was trained on whole images made smaller" in capsys.readouterr().out
    tiled = pixels(results)
    assert {name: image.shape for name, image in tiled.items()} == {n: image.shape for n, image in whole.items()}
    assert np.array_equal(whole["b_fits.png"], tiled["b_fits.png"])
    assert np.array_equal(whole["c_small.png"], tiled["c_small.png"])
    assert not np.array_equal(whole["a_wide.png"], tiled["a_wide.png"])
    assert "debug/a_wide.gif" in files(results)
    assert json.loads((results / "manifest.json").read_text())["settings"]["tile"] == "with overlap 0.25"


def test_a_checkpoint_of_crops_is_sampled_in_tiles_by_itself(sample, cropped, large, refusal, tmp_path, capsys):
    assert load_checkpoint(cropped).config["train"]["crop"] is True
    results = sample(cropped, large)
    tiled = pixels(results)
    assert "--tile" not in capsys.readouterr().out
    twin = sample(cropped, large, f"{FAST} --tile True --sample_batch_size 3 --num_samples 1", out="twin")
    differs = tiled["a_wide.png"].astype(int) - pixels(twin)["a_wide.png"]
    assert np.abs(differs).max() <= 8  # of 65535: rounding
    message = refusal(
        "segmentation_sample",
        ["--model_path", cropped, "--data_dir", large, "--out_dir", results, FAST, "--tile False"],
    )
    assert "were made with --tile with overlap 0.25, now it is False" in message
    message = refusal(
        "segmentation_sample",
        [
            "--model_path",
            cropped,
            "--data_dir",
            large,
            "--out_dir",
            tmp_path / "new",
            "--tile False --tile_overlap 0.5",
        ],
    )
    assert message.endswith("--tile_overlap 0.5 belongs to --tile True; leave it out")


def test_validation_of_a_run_on_crops_sees_whole_images(cropped):
    rows = [json.loads(line) for line in (cropped.parent / "log.jsonl").read_text().splitlines()]
    assert 0 <= rows[-1]["val_coarse_dice"] <= 1 and 0 <= rows[-1]["val_dice"] <= 1


def test_segmenter_answers_in_tiles_as_the_script_does(sample, cropped, large):
    results = sample(cropped, large, "--num_ensemble 2 --num_samples 1 --num_workers 0 --precision fp32")
    image = np.asarray(Image.open(large / "images" / "a_wide.png"))
    answer = Segmenter.load(cropped, members=2, precision="fp32", device="cpu")(image, "a_wide")
    assert answer.mask.shape == (20, 75)
    assert np.array_equal(answer.mask, pixels(results, "masks")["a_wide.png"] > 0)


def test_results_older_than_tiles_are_gone_on_with(sample, trained, large):
    results = sample(trained, large)
    manifest = json.loads((results / "manifest.json").read_text())
    del manifest["settings"]["tile"]
    (results / "manifest.json").write_text(json.dumps(manifest))
    sample(trained, large)


def test_a_volume_in_tiles(sample, train, brats, tmp_path):
    checkpoint = train("BRATS", brats, "--image_size 16 --crop True --attention_resolutions 8")
    results = sample(checkpoint, brats, f"{FAST} --tile_overlap 0.5")
    mask = read_nifti(next(results.glob("*_prob.nii.gz")))[0]
    assert mask.shape == (32, 32, 3) and np.isfinite(mask).all()
