"""The published sizes: parameter counts of every variant against a sum over its layers, and what a pass costs."""

import dataclasses

import pytest
import torch
from networks import inputs, run_model

from guided_diffusion.config.command_line import parse
from guided_diffusion.config.fields import build
from guided_diffusion.config.options import ModelOptions
from guided_diffusion.config.settings import unless_contradicted
from guided_diffusion.models.medsegdiff import build_model
from guided_diffusion.runtime.errors import UserError

PRESETS = ("S", "B", "L", "++")


def conv(a, b, kernel=3):
    return a * b * kernel**2 + b


def norm(channels):
    return 2 * channels


def residual(a, b, embedding, per_channel):
    """Two norms, two convolutions, the embedding's layer, and a 1x1 convolution where the width changes."""
    embed = (embedding + 1) * per_channel * b if embedding else 0
    return norm(a) + conv(a, b) + norm(b) + conv(b, b) + embed + (conv(a, b, 1) if a != b else 0)


def attention(width):
    return norm(width) + conv(width, 3 * width, 1) + conv(width, width, 1)


def encoder(a, widths, attended, blocks, **emb):
    total, previous = conv(a, widths[0]), widths[0]
    for level, width in enumerate(widths):
        total += conv(previous, previous) if level else 0
        for _ in range(blocks):
            total += residual(previous, width, **emb) + (attention(width) if level in attended else 0)
            previous = width
    return total


def middle(width, **emb):
    return 2 * residual(width, width, **emb) + attention(width)


def decoder(widths, attended, blocks, **emb):
    total, previous = 0, widths[-1]
    for level in reversed(range(len(widths))):
        for skip in [widths[level]] * blocks + [widths[max(level - 1, 0)]]:
            total += residual(previous + skip, widths[level], **emb)
            total += attention(widths[level]) if level in attended else 0
            previous = widths[level]
        total += conv(previous, previous) if level else 0
    return total


def head(width, k):
    return norm(width) + conv(width, k)


def unet(c, k, widths, attended, blocks, **emb):
    parts = (widths, attended, blocks)
    return encoder(c, *parts, **emb) + middle(widths[-1], **emb) + decoder(*parts, **emb) + head(widths[0], k)


def ss_former(width, heads, embedding, blocks=2, hidden=16):
    cross = 3 * norm(width) + 4 * conv(width, width, 1) - width + (embedding + 1) * 2 * width
    mlp = conv(width, 2 * width, 1) + conv(2 * width, width, 1)
    nbp = conv(4, hidden, 1) + conv(hidden, hidden, 1) + 2 * (embedding + 1) * 2 * hidden + conv(hidden, heads, 1)
    return blocks * 2 * (cross + mlp + nbp)


def counted(version, preset, c=4, k=1):
    """The sum for data with c image channels and k classes."""
    channels, blocks, heads = (512, 12, 8) if preset == "++" else (128, 2, 1)
    multipliers = {"S": (1, 1, 2, 2, 4), "L": (1, 1, 2, 2, 4, 4, 4)}.get(preset, (1, 1, 2, 2, 4, 4))
    widths = [channels * m for m in multipliers]
    attended = {level for level in range(len(widths)) if 256 / 2**level == 16 and preset != "++"}
    parts = (widths, attended, blocks)
    without, time = {"embedding": 0, "per_channel": 0}, {"embedding": 4 * channels, "per_channel": 1 + (preset == "++")}
    if version == "unet":
        return unet(c, k, *parts, **without)
    embedding = (channels + 1) * 4 * channels + (4 * channels + 1) * 4 * channels
    diffusion = unet(c + k, k, *parts, **time) + embedding
    if version == "v2":
        anchor = 2 * widths[0] + widths[0] + conv(widths[0], 1, 1)
        return diffusion + unet(c, k, *parts, **without) + anchor + ss_former(widths[-1], heads, 4 * channels)
    first = widths[0]
    fusions = sum(w * size * (size // 2 + 1) * 2 + 2 * norm(w) for w, size in zip(widths[:2], (256, 128), strict=True))
    coarse = sum(conv(w, first, 1) + residual(first, first, **without) for w in widths)
    coarse += (len(widths) - 1) * conv(first, first) + head(first, k)
    return diffusion + encoder(c, *parts, **without) + fusions + coarse


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("version", ["v1", "v2", "unet"])
def test_every_preset_builds_and_has_as_many_parameters_as_its_layers_sum_up_to(version, preset):
    with torch.device("meta"):
        model = build_model(build(ModelOptions, {"version": version, "preset": preset}), 4, 1)
    assert sum(parameter.numel() for parameter in model.parameters()) == counted(version, preset)


def test_the_single_diffusion_unet_of_plus_plus_has_some_7_6_billion_parameters():
    widths = [512, 512, 1024, 1024, 2048, 2048]
    total = unet(5, 1, widths, set(), 12, embedding=2048, per_channel=2)
    assert total == pytest.approx(7.6e9, rel=0.03)


@pytest.mark.parametrize("version", ["v1", "v2", "unet"])
def test_the_code_path_of_plus_plus_trains_at_small_numbers(version):
    small = {"num_channels": 16, "image_size": 32, "channel_mult": "1,1,2", "use_checkpoint": True, "version": version}
    model = build_model(build(ModelOptions, {"preset": "++", **small}), 4, 1).train()
    assert len(model.state_dict()) > 300 and model.shape.blocks == 12 and model.shape.heads == 8
    image, x_t, t = inputs(32, image_channels=4)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=2e-3), []
    for _ in range(6):
        output = run_model(model, image, x_t, t)
        loss = (output.prediction - 1).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.5 * losses[0]


def test_the_published_model_has_about_130_million_parameters_and_half_a_teraflop():
    from torch.utils.flop_counter import FlopCounterMode

    published = build(ModelOptions, {"version": "v1", "use_scale_shift_norm": False, "learn_sigma": True})
    assert (published.image_size, published.num_channels) == (256, 128)
    with torch.device("meta"):
        model = build_model(published, image_channels=4, mask_channels=1)
        image, x_t, t = torch.zeros(1, 4, 256, 256), torch.zeros(1, 1, 256, 256), torch.zeros(1)
        with FlopCounterMode(display=False) as counter:
            output = run_model(model, image, x_t, t)
    assert output.prediction.shape == output.variance.shape == (1, 1, 256, 256)
    assert 120e6 < sum(parameter.numel() for parameter in model.parameters()) < 180e6
    assert 0.3e12 < counter.get_total_flops() < 1.2e12
    assert model.shape.attention_levels == (4,)


def model_flags(line):
    (options,), _ = parse("", [ModelOptions], line.split())
    return dataclasses.asdict(options)


def test_a_preset_sets_the_model_flags_and_explicit_flags_win():
    published = model_flags("--preset ++")
    names = ("num_channels", "num_res_blocks", "num_heads", "attention_resolutions", "use_scale_shift_norm")
    assert [published[name] for name in names] == [512, 12, 8, "24", True]
    own = model_flags("--num_heads 4 --preset ++ --image_size 64")
    assert {name for name in own if own[name] != published[name]} == {"num_heads", "image_size"}
    levels = [len(model_flags(f"--preset {preset}")["channel_mult"].split(",")) for preset in ("S", "B", "L", "++")]
    assert levels == [5, 6, 7, 6]  # 4, 5 and 6 downsamplings


def test_a_preset_contradicts_a_checkpoint_by_what_it_stands_for():
    saved = {**dataclasses.asdict(build(ModelOptions, {"preset": "B"})), "preset": ""}
    (options,), given = parse("", [ModelOptions], ["--preset", "B"])
    assert unless_contradicted(options, given, saved, "x.pt").num_channels == 128
    (options,), given = parse("", [ModelOptions], ["--preset", "++"])
    with pytest.raises(UserError, match=r"\(of --preset \+\+\) contradicts the checkpoint x.pt"):
        unless_contradicted(options, given, saved, "x.pt")
