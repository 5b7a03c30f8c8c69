"""Graphs for other programs: they give what the network gives, for any number of images, and name no folder."""

import logging

import pytest
import torch
from networks import model_of

from guided_diffusion.config.fields import build
from guided_diffusion.config.options import DiffusionOptions
from guided_diffusion.diffusion.gaussian_diffusion import build_diffusion
from guided_diffusion.inference import graphs as module
from guided_diffusion.inference.graphs import (
    Graph,
    condition_of,
    graphs_of,
    parts_of,
    write_graphs,
)
from guided_diffusion.inference.temperature import apply_temperature
from guided_diffusion.models.fourier import FFParser
from guided_diffusion.runtime.errors import UserError

SMALL = {"image_size": 8, "channel_mult": "1"}
LIGHT = {"concat_features": True, "diffusion_level": 1, "channel_mult": "1,1", "image_size": 8, "ss_blocks": 1}
STAGED = {"objective": "x0", "mask_loss": "bce", "logit_skip": "both", "input_scale": 0.5}


@pytest.fixture(autouse=True)
def without_traces():
    """No log of torch's tracing, which pytest would keep: it takes most of the time."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def diffusion_of(**options):
    return build_diffusion(build(DiffusionOptions, {"diffusion_steps": 50, **options}))


def test_a_plain_unet_s_probability_has_the_temperature():
    """tests/cli/test_export.py writes its graph."""
    model = model_of(3, 2, version="unet", **SMALL)
    diffusion = diffusion_of(mask_loss="bce", class_activation="softmax")
    (graph,) = graphs_of(model, diffusion, 3, 8, temperature=1.7)
    image = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        (found,), logits = graph.module(image), model.encode(image).logits
    expected = torch.cat([torch.zeros(5, 1, 8, 8), logits], dim=1).softmax(dim=1)[:, 1:]
    assert torch.allclose(
        found,
        torch.from_numpy(apply_temperature(expected.movedim(1, 0).numpy(), 1.7, exclusive=True)).movedim(0, 1),
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "options, learned",
    [
        ({"version": "v2", **LIGHT}, STAGED),
        ({"version": "v1", "learn_sigma": True, "class_cond": True, **SMALL}, {"objective": "v"}),
    ],
)
def test_a_denoising_step_is_the_sampler_s(options, learned):
    """Of the modules, before they are traced: tracing them is slow, and `write_graphs` compares what it wrote."""
    labels = 2 if "class_cond" in options else 0
    model, diffusion = model_of(3, 1, labels, **options), diffusion_of(**learned)
    condition, step = graphs_of(model, diffusion, 3, 8)
    image, label = torch.randn(3, 3, 8, 8), torch.tensor([0, 1, 1])
    x_t, t = torch.randn(3, 1, 8, 8), torch.tensor([49, 20, 0])
    with torch.no_grad():
        found = condition.module(image, *([label] if labels else []))
        parts = found[len(found) - len(parts_of(step.module.like)) :]
        own = model.encode(image, label if labels else None)
        expected = diffusion.denoiser(model, own)(x_t, t)
        answer = step.module(x_t, t, *parts)
    assert len(step.inputs) == 2 + len(parts) and len(step.outputs) == len(answer)
    assert torch.allclose(answer[0], expected.x0, atol=1e-6)
    if labels:
        assert step.outputs == ["x_0", "variance", "coarse"] and condition.inputs == ["image", "label"]
        assert torch.allclose(answer[1], expected.variance_fraction) and condition.outputs[0] != "probability"
        assert torch.allclose(answer[2], expected.coarse.sigmoid())
    else:
        assert condition.outputs[0] == "probability" and torch.allclose(found[0], own.coarse.sigmoid())


class Layer(torch.nn.Module):
    """V1's layer in the Fourier domain, as a graph takes it."""

    def __init__(self):
        super().__init__()
        self.parser = FFParser(2, 4)

    def forward(self, *inputs):
        return (self.parser(*inputs),)


def test_a_graph_holds_no_autocast_and_no_folder():
    """torch's reader refuses a context of autocast whose result nothing uses."""
    x = torch.randn(3, 2, 4, 4)
    program = module._traced(Graph("condition", Layer(), ["x"], ["y"], lambda count: (x[:count],)))
    assert "fft" in program.graph_module.code and "autocast" not in program.graph_module.code
    traces = [node.meta.get("stack_trace") for node in program.graph.nodes]
    assert not any(traces)


def test_a_graph_that_differs_is_refused(tmp_path, monkeypatch):
    model = model_of(1, 1, version="unet", **SMALL)
    monkeypatch.setattr(module, "_traced", lambda graph: None)
    monkeypatch.setattr(module, "_write_pt2", lambda path, program, graph: lambda v: (graph.module(*v)[0] + 2e-4,))
    with pytest.raises(UserError, match="condition.pt2: differs from the network by 0.0002, more than 0.0001"):
        write_graphs(tmp_path, graphs_of(model, diffusion_of(mask_loss="bce"), 1, 8), ("pt2",))
    monkeypatch.setattr(module, "_write_pt2", lambda path, program, graph: lambda v: (graph.module(*v)[0] * torch.nan,))
    with pytest.raises(UserError, match="differs from the network by nan"):
        write_graphs(tmp_path, graphs_of(model, diffusion_of(mask_loss="bce"), 1, 8), ("pt2",))


def test_parts_and_condition_are_inverse():
    model = model_of(3, 1, version="v2", **LIGHT)
    with torch.no_grad():
        condition = model.encode(torch.randn(1, 3, 8, 8))
    again = condition_of(parts_of(condition), condition)
    assert type(again) is type(condition) and again.label is None
    assert all(torch.equal(a, b) for a, b in zip(parts_of(again), parts_of(condition), strict=True))
