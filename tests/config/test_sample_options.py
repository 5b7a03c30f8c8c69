"""Options of sampling: the published names, and values that make no sense."""

import pytest
from helpers import PUBLISHED, SAMPLE, refused, values

from guided_diffusion.config.command_line import parse


def test_published_sampling_command():
    line = PUBLISHED + " --model_path M.pt --num_ensemble 5"
    (sample, data, model, diffusion, _), given = parse("", SAMPLE, line.split())
    assert (sample.diffusion_steps, sample.num_ensemble, sample.model_path) == (1000, 5, "M.pt")
    assert model.learn_sigma and diffusion.noise_schedule == "linear" and data.data_dir == "DATA/training"
    assert {"diffusion_steps", "learn_sigma", "model_path"} <= given and "fuse" not in given


def test_published_flags_for_the_large_model_and_fast_sampling():
    got = values(
        "--num_channels 512 --num_res_blocks 12 --num_heads 8 --use_scale_shift_norm True --attention_resolutions 24"
    )
    assert (got["num_channels"], got["num_heads"], got["attention_resolutions"]) == (512, 8, "24")
    got = values("--dpm_solver True --diffusion_steps 50 --num_ensemble 5", SAMPLE)
    assert got["dpm_solver"] is True and got["diffusion_steps"] == 50


@pytest.mark.parametrize(
    "line", ["--num_ensemble -1", "--fuse median", "--diffusion_steps -1", "--num_samples -1", "--sample_batch_size 0"]
)
def test_sampling_values_out_of_range(line):
    assert refused(line, SAMPLE).startswith(line + ": must be ")
