"""Weights of an encoder: read safely, compared whole, adapted to channels, and never needed again after the run."""

import os
import pickle
import sys

import pytest
import torch
from conftest import TINY
from helpers import TRAIN
from networks import model_of

from guided_diffusion.checkpoint import load_checkpoint
from guided_diffusion.config.command_line import parse
from guided_diffusion.config.settings import settle
from guided_diffusion.models import pretrained
from guided_diffusion.runtime.errors import UserError
from guided_diffusion.training import encoder_weights
from guided_diffusion.training.encoder_weights import load_encoder, read_encoder_weights
from guided_diffusion.training.stages import mark_learning

SMALL = {"image_size": 32, "channel_mult": "1,1,1", "encoder": "test_resnet"}


@pytest.fixture(scope="module")
def state():
    """The state dict of timm's own whole network, with random weights and statistics."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(3)
    state = timm.create_model("test_resnet", pretrained=False).state_dict()
    return {name: torch.rand_like(v) if v.is_floating_point() else v for name, v in state.items()}


def saved(folder, state, name="weights.pth"):
    torch.save(state, folder / name)
    return folder / name


# ---- files ---------------------------------------------------------------------------------------------------------


def test_weights_come_from_a_file_of_either_kind_and_from_a_folder(state, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(state, tmp_path / "model.safetensors")
    places = [tmp_path / "model.safetensors", tmp_path, saved(tmp_path, state)]
    places.append(
        saved(tmp_path, {"state_dict": {f"module.{n}": v for n, v in state.items()}, "epoch": 3}, "trained.pt")
    )
    for place in places:
        found = read_encoder_weights(str(place))
        assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("there", ["model.safetensors", "pytorch_model.bin", None])
def test_from_the_hub_one_file_is_fetched(state, tmp_path, monkeypatch, there):
    asked = []

    def fetch(path, names):
        asked.extend(names)
        if there in names:
            save = torch.save if there.endswith("bin") else pytest.importorskip("safetensors.torch").save_file
            save(state, tmp_path / there)
        return tmp_path

    monkeypatch.setattr(encoder_weights, "fetch_from_hub", fetch)
    if there is None:
        with pytest.raises(UserError, match="^--encoder_weights hf://a/b: holds no model.safetensors or"):
            read_encoder_weights("hf://a/b")
        return
    assert read_encoder_weights("hf://a/b").keys() == state.keys()
    assert asked == ["model.safetensors", "pytorch_model.bin"][: 1 + (there == "pytorch_model.bin")]


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_what_holds_no_weights_is_refused_in_one_line_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn.safetensors").write_bytes(b"{}" * 40)
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"a": Harmful()}))
    saved(tmp_path, {"a": Harmful()}, "harmful.pth")
    saved(tmp_path, {"epoch": 3}, "other.pth")
    saved(tmp_path, {"a": torch.tensor([float("nan")])}, "nan.pth")
    changed = saved(tmp_path, {"a": torch.full((99,), 7.0)}, "changed.pth")
    changed.write_bytes(changed.read_bytes().replace(torch.tensor(7.0).numpy().tobytes(), b"abcd", 1))
    for name, message in (
        ("none.pth", "no such file or folder"),
        ("empty", "holds no model.safetensors or pytorch_model.bin"),
        ("torn.safetensors", "is no file of safetensors, or a damaged one"),
        ("old.pth", "holds more than tensors, or is damaged, and was not loaded"),
        ("harmful.pth", "holds more than tensors, or is damaged, and was not loaded"),
        ("other.pth", "holds no state dict"),
        ("changed.pth", "is damaged"),
        ("nan.pth", "the tensor a holds numbers that are not finite"),
    ):
        with pytest.raises(UserError, match=f"^--encoder_weights {name}: {message}") as caught:
            read_encoder_weights(name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "harm").exists()


# ---- names and shapes ----------------------------------------------------------------------------------------------


def test_all_weights_and_statistics_are_taken_and_further_layers_named(state):
    model = model_of(version="v2", **SMALL)
    line = load_encoder(model, state, "here")
    own = model.condition_model.pretrained.net.model.state_dict()
    taken = [name for name in own if not name.endswith("num_batches_tracked")]
    assert all(torch.equal(own[name], state[name]) for name in taken) and any("running_var" in name for name in taken)
    assert line.startswith(f"here: all {len(taken)} tensors of the encoder begin with its weights; of it not used ")
    assert ": layer2.0.conv1.weight" in line and line.endswith(" more")


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_see_the_mean_so_that_equal_channels_look_the_same(state, channels):
    of_colours, other = (model_of(count, version="unet", **SMALL) for count in (3, channels))
    for model in (of_colours, other):
        line = load_encoder(model, state, "here")
    assert f"; the mean of its 3 channels stands for each of {channels}" in line
    grey = torch.rand(1, 1, 32, 32)
    maps = [model.unet.pretrained.net(grey.expand(-1, n, -1, -1)) for model, n in ((of_colours, 3), (other, channels))]
    for one, twin in zip(*maps, strict=True):
        torch.testing.assert_close(one, twin, rtol=1e-4, atol=1e-4)


def test_weights_of_another_network_are_refused(state):
    model = model_of(version="unet", **SMALL)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    less = {name: value for name, value in state.items() if not name.startswith("layer1")}
    with pytest.raises(UserError, match="^here: lacks .* of .* tensors, as layer1.*; is it of the same network"):
        load_encoder(model, less, "here")
    with pytest.raises(UserError, match=r"^here: model.bn1.bias has the shape \[99\], not "):
        load_encoder(model, state | {"bn1.bias": torch.zeros(99)}, "here")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ---- options and stages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--encoder_weights w.pth", "--encoder_weights w.pth belongs to --encoder NAME"),
        ("--freeze_encoder True", "--freeze_encoder True belongs to --encoder NAME"),
        ("--encoder resnet18 --freeze_encoder True", "--freeze_encoder True: the encoder would stay random"),
        ("--encoder resnet18 --encoder_weights w.pth --init_from x.pt", "--encoder_weights and --init_from: both"),
        ("--encoder resnet18 --fsdp True", "--encoder resnet18 does not go with --fsdp True"),
        ("--version v1 --encoder resnet18", "--encoder belongs to --version v2 or unet, not v1"),
    ],
)
def test_options_of_the_encoder_that_do_nothing_are_refused(line, message):
    with pytest.raises(UserError, match=f"^{message}"):
        settle(*parse("", TRAIN, f"--data_dir x {line}".split()))


def test_a_frozen_encoder_learns_in_no_stage(state):
    model = model_of(version="v2", **SMALL)
    for first, second in ((False, False), (True, False), (False, True)):
        for frozen in (False, True):
            mark_learning(model, first=first, second=second, has_coarse_loss=True, freeze_encoder=frozen)
            own = {p.requires_grad for name, p in model.named_parameters() if ".pretrained." in name}
            assert own == {not frozen and not second}
            joins = {p.requires_grad for name, p in model.named_parameters() if ".joins." in name}
            assert joins == {not second}


# ---- a run ---------------------------------------------------------------------------------------------------------


def test_a_run_begins_with_them_goes_on_without_and_its_checkpoint_needs_no_file(
    script, pictures, state, tmp_path, capsys, monkeypatch
):
    weights = saved(tmp_path, state)
    line = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path / "run", TINY, "--version v2"]
    line += ["--encoder test_resnet --freeze_encoder True --resume_checkpoint auto --encoder_weights", weights]
    script("segmentation_train", [*line, "--max_steps 1"])
    out = capsys.readouterr().out
    assert f"--encoder_weights {weights}: all " in out and "begins at random" not in out
    weights.unlink()
    script("segmentation_train", [*line, "--max_steps 2"])
    assert "--encoder_weights has no effect: the run goes on from its own step 1" in capsys.readouterr().out
    path = tmp_path / "run" / "model000002.pt"
    last = load_checkpoint(path, to_train=True)
    assert last.config["model"]["encoder"] == "test_resnet" and str(tmp_path) not in str(last.config)
    kept = {name.partition(".net.model.")[2]: value for name, value in last.model.items() if ".net.model." in name}
    for name, value in kept.items():
        assert name.endswith("num_batches_tracked") or torch.equal(value, state[name])
    script("export", ["--model_path", path, "--out_dir", tmp_path / "exported"])
    exported = load_checkpoint(tmp_path / "exported")
    monkeypatch.setitem(sys.modules, "timm", None)
    pretrained._found.cache_clear()
    with pytest.raises(UserError, match=r"2.pt: --encoder test_resnet: needs timm.*\[encoders\]'$"):
        load_checkpoint(path)
    monkeypatch.undo()
    (network, _), (_, averaged) = exported.build(), last.weights("ema")
    assert network.state_dict().keys() == averaged.keys()
    assert all(torch.equal(value, averaged[name]) for name, value in network.state_dict().items())


def test_a_run_with_an_encoder_at_random_says_so(script, pictures, tmp_path, capsys):
    pytest.importorskip("timm")
    line = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path / "run", TINY, "--version unet"]
    script("segmentation_train", [*line, "--encoder test_resnet --max_steps 1 --dry_run True"])
    out = capsys.readouterr().out
    assert "warning: --encoder test_resnet begins at random: name weights for it with --encoder_weights" in out
    assert "encoder: test_resnet" in out
