"""The encoder of timm: its maps, its start, and what is refused. Weights are random; nothing is downloaded."""

import socket
import sys

import pytest
import torch
from networks import inputs, model_of, options_of

from guided_diffusion.config.fields import check_variant
from guided_diffusion.config.options import DiffusionOptions
from guided_diffusion.models import pretrained
from guided_diffusion.models.medsegdiff import build_model
from guided_diffusion.models.saved_weights import network_of
from guided_diffusion.runtime.errors import UserError

SMALL = {"image_size": 32, "channel_mult": "1,1,1"}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*_):
        raise AssertionError("something was asked of the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def timm():
    return pytest.importorskip("timm")


@pytest.mark.parametrize("version", ["v2", "unet"])
@pytest.mark.parametrize("encoder", ["test_resnet", "test_efficientnet"])
def test_at_first_the_network_answers_as_without_it_and_all_of_it_learns(timm, version, encoder):
    options = options_of(version=version, encoder=encoder, **SMALL)
    torch.manual_seed(0)
    model, plain = build_model(options, 4, 1), build_model(options_of(version=version, **SMALL), 4, 1)
    own = {name: value for name, value in model.state_dict().items() if ".pretrained." not in name}
    plain.load_state_dict({name: value for name, value in own.items() if ".joins." not in name})
    image, x_t, t = inputs(32, 48, image_channels=4)
    for one, other in zip(model.encode(image)[:1], plain.encode(image)[:1], strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    output = model.train()(x_t, t, model.encode(image))
    loss = output.prediction.square().sum() + (0 if output.coarse is None else output.coarse.square().sum())
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for name, p in model.named_parameters() if ".pretrained." in name)


def test_maps_have_the_sizes_of_the_levels_by_image_pixels(timm):
    encoder = model_of(version="unet", encoder="test_resnet", patch_size=2, **SMALL).unet.pretrained
    assert list(encoder.levels) == [0, 1, 2]  # of 2, 4 and 8 pixels
    maps = encoder(torch.zeros(1, 3, 32, 48))
    assert [tuple(value.shape[1:]) for value in maps.values()] == [
        (width, 16 // 2**level, 24 // 2**level) for level, width in encoder.levels.items()
    ]


def test_pictures_are_normalised_as_by_timm(timm):
    encoder = model_of(version="unet", encoder="test_resnet", scale=0, **SMALL).unet.pretrained
    config = encoder.net.model.pretrained_cfg
    picture = torch.rand(1, 3, 32, 32)
    mean, deviation = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    expected = encoder.net((picture - mean) / deviation)
    for got, wanted in zip(encoder(2 * picture - 1).values(), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_an_image_s_features_depend_on_no_other_image_in_training_either(timm):
    model = model_of(version="unet", encoder="test_resnet", **SMALL).train()
    image, _, _ = inputs(32)
    before = {name: value.clone() for name, value in model.named_buffers()}
    together = model.encode(image).logits
    torch.testing.assert_close(model.encode(image[:1]).logits, together[:1])
    assert before and all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_a_checkpoint_s_network_is_rebuilt_without_memory(timm):
    options = options_of(version="v2", encoder="test_resnet", **SMALL)
    weights = build_model(options, 3, 1).state_dict()
    pretrained._found.cache_clear()
    network = network_of(options, 3, 1, 0, weights)
    assert all(value.is_meta for value in network.state_dict().values())
    assert {name: value.shape for name, value in network.state_dict().items()} == {
        name: value.shape for name, value in weights.items()
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet_18", "timm has no network of this name; write resnet18"),
        ("hf-hub:someone/model", "timm has no network of this name; write resnet18"),
        ("test_resne", "timm has no network of this name; it has test_resnet"),
        ("test_vit", "gives no feature maps of 32 pixels|has no feature maps of the sizes of the network's levels"),
    ],
)
def test_what_gives_no_maps_is_refused_in_one_line(timm, name, message):
    with pytest.raises(UserError, match=f"^--encoder {name}: ({message})") as caught:
        model_of(version="unet", encoder=name, **SMALL)
    assert "\n" not in str(caught.value)


def test_a_network_with_layers_beside_its_maps_is_refused(timm, monkeypatch):
    """They would get no gradient, for which several processes would wait."""
    make = pretrained._timm_features

    def with_more(*arguments):
        net = make(*arguments)
        net.further = torch.nn.Linear(2, 2)
        return net

    monkeypatch.setattr(pretrained, "_timm_features", with_more)
    pretrained._found.cache_clear()
    with pytest.raises(UserError, match="^--encoder test_resnet: has no feature maps of the sizes"):
        model_of(version="unet", encoder="test_resnet", **SMALL)
    pretrained._found.cache_clear()


def test_without_timm_a_line_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    pretrained._found.cache_clear()
    with pytest.raises(UserError, match=r"^--encoder resnet18: needs timm.*pip install 'guided_diffusion\[encoders\]'"):
        model_of(version="unet", encoder="resnet18", **SMALL)


def test_v1_has_no_encoder():
    options = options_of(version="v1", encoder="resnet18")
    with pytest.raises(UserError, match="^--encoder belongs to --version v2 or unet, not v1; leave it out$"):
        check_variant(options, DiffusionOptions(), given={"encoder"})
