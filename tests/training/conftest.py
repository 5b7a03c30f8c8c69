"""A training loop in memory."""

import pytest
import torch
from conftest import run_of
from networks import Blobs

from guided_diffusion.config.fields import build
from guided_diffusion.config.options import DiffusionOptions, ModelOptions
from guided_diffusion.config.train_options import TrainOptions
from guided_diffusion.diffusion.gaussian_diffusion import build_diffusion
from guided_diffusion.models.medsegdiff import build_model
from guided_diffusion.training.loop import TrainLoop


@pytest.fixture
def loop(tmp_path):
    """A function that builds a `TrainLoop` on `Blobs`; keywords are of TrainOptions, the dicts of the other options."""

    def make(dataset=Blobs, model=(), diffusion=(), precision="fp32", start=None, layout=None, **train):
        torch.manual_seed(0)
        shape = {
            "version": "v1",
            "image_size": 16,
            "num_channels": 8,
            "channel_mult": "1,2",
            "num_res_blocks": 1,
            **dict(model),
        }
        model_options = build(ModelOptions, shape)
        diffusion_options = build(DiffusionOptions, {"diffusion_steps": 20, **dict(diffusion)})
        options = build(TrainOptions, {"out_dir": str(tmp_path / "run"), "batch_size": 3, "lr": 1e-2, **train})
        run = run_of(
            model_options, diffusion_options, options, dataset(tmp_path, 16, need_masks=True), precision, start
        )
        model = build_model(model_options, 2, 1).to(memory_format=layout or torch.contiguous_format)
        return TrainLoop(run, model, build_diffusion(diffusion_options))

    return make
