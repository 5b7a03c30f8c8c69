"""Options of training: values that make no sense."""

import pytest
from helpers import refused


@pytest.mark.parametrize(
    "line, words",
    [
        ("--image_size 0", "--image_size 0: must be above 0"),
        ("--image_size big", "--image_size big: must be a whole number"),
        ("--num_channels -8", "--num_channels -8: must be above 0"),
        ("--num_head_channels 0", "--num_head_channels 0: must be -1 or above 0"),
        ("--channel_mult 1,x", "--channel_mult 1,x: must be numbers"),
        ("--channel_mult 0,1", "every level needs at least one channel"),
        ("--attention_resolutions 16.5", "--attention_resolutions 16.5: must be whole numbers"),
        ("--dropout 1", "--dropout 1: must be at most 0.99"),
        ("--dropout -0.1", "--dropout -0.1: must be at least 0"),
        ("--diffusion_steps 1", "--diffusion_steps 1: must be at least 2"),
        ("--noise_schedule sigmoid", "must be one of linear, cosine"),
        ("--input_scale 2", "--input_scale 2: must be at most 1"),
        ("--lr 0", "--lr 0: must be above 0"),
        ("--lr nan", "--lr nan: is not a finite number"),
        ("--lr inf", "--lr inf: is not a finite number"),
        ("--weight_decay -1e-1", "--weight_decay -1e-1: must be at least 0"),
        ("--microbatch 0", "--microbatch 0: must be -1 or above 0"),
        ("--ema_rate 1", "every rate must be at least 0 and below 1"),
        ("--ema_rate 0.9,x", "--ema_rate 0.9,x: must be numbers"),
        ("--ema_rate ,", "--ema_rate ,: must be numbers"),
        ("--ema_rate 0.9,0.90", "names a rate twice"),
        ("--max_steps 0", "--max_steps 0: must be above 0"),
        ("--save_interval 0", "--save_interval 0: must be above 0"),
        ("--schedule_sampler random", "must be one of uniform, loss-second-moment"),
        ("--gpu_dev 0,1", "--gpu_dev 0,1: must be the number of one GPU, mps or cpu"),
        ("--precision fp8", "must be one of auto, fp32, bf16, fp16"),
        ("--seed -1", "--seed -1: must be at least 0"),
        ("--ct_window 5", "--ct_window 5: must be two numbers, the lower one first"),
        ("--ct_window 240,-160", "must be two numbers, the lower one first"),
        ("--ct_window -160,-240", "--ct_window -160,-240: must be two numbers, the lower one first"),
        ("--ct_window a,b", "--ct_window a,b: must be numbers"),
        ("--num_workers -1", "--num_workers -1: must be at least 0"),
    ],
)
def test_training_values_out_of_range(line, words):
    assert words in refused(line)
