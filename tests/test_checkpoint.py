"""Checkpoints: a round trip, no code from a file, whole or not at all."""

import dataclasses
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

import guided_diffusion
from guided_diffusion import checkpoint as module
from guided_diffusion.checkpoint import (
    Checkpoint,
    checkpoint_file,
    checkpoint_path,
    load_checkpoint,
    names_digest,
    newest_checkpoint,
    save_checkpoint,
)
from guided_diffusion.config.options import DiffusionOptions, ModelOptions
from guided_diffusion.config.places import without_folders
from guided_diffusion.config.train_options import TrainOptions
from guided_diffusion.io.archives import check_records, file_hash
from guided_diffusion.models.medsegdiff import build_model
from guided_diffusion.runtime.errors import UserError, describe_os_error
from guided_diffusion.runtime.version import VERSION


@pytest.fixture
def content():
    """A checkpoint of a random network for 3 channels, 1 class and 2 labels."""
    torch.manual_seed(0)
    options = ModelOptions(image_size=16, num_channels=8, channel_mult="1,2", num_res_blocks=1, class_cond=True)
    model = build_model(options, 3, 1, 2)
    averaged = {name: torch.rand_like(parameter) for name, parameter in model.named_parameters()}
    first = next(iter(averaged.values()))
    moments = {"step": torch.tensor(7.0), "exp_avg": first, "exp_avg_sq": first + 1}
    return Checkpoint(
        config={
            "data": {"data_name": "ISIC"},
            "model": dataclasses.asdict(options),
            "diffusion": dataclasses.asdict(
                DiffusionOptions(diffusion_steps=10, objective="v", input_scale=0.5, mask_loss="mse")
            ),
            "train": {"lr": 1e-4},
        },
        image_channels=3,
        class_names=["lesion"],
        label_names=["benign", "malignant"],
        step=7,
        model=model.state_dict(),
        ema={"0.99": averaged, "0.5": {name: value + 1 for name, value in averaged.items()}},
        optimizer={"state": {0: moments}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        timestep_sampler={"losses": torch.zeros(10, 10), "counts": torch.arange(10)},
    )


def test_a_folder_stands_for_its_best_checkpoint_else_the_last(tmp_path, content):
    file = tmp_path / "model000007.pt"
    save_checkpoint(content, file)
    assert checkpoint_file(file) == file and checkpoint_file(tmp_path / "none.pt") == tmp_path / "none.pt"
    with pytest.raises(UserError, match=f"its newest checkpoint is {file}; name a run's folder or a file"):
        checkpoint_file(tmp_path)
    for name in ("last.pt", "best.pt"):
        file.rename(tmp_path / name)
        assert checkpoint_file(tmp_path) == tmp_path / name
        file.write_bytes((tmp_path / name).read_bytes())
    assert load_checkpoint(tmp_path).step == 7


def test_a_folder_in_a_store_stands_for_its_best_checkpoint_too(blobs):
    folder = Path(blobs.local("gs://bucket/run"))
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match="gs://bucket/run: is a folder without best.pt and last.pt"):
        checkpoint_file("gs://bucket/run")
    (folder / "last.pt").touch()
    assert checkpoint_file("gs://bucket/run/") == "gs://bucket/run/last.pt"
    assert checkpoint_file("gs://bucket/run/model000001.pt") == "gs://bucket/run/model000001.pt"


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def test_round_trip(content, tmp_path):
    content.config["train"] = dataclasses.asdict(TrainOptions())
    save_checkpoint(content, tmp_path / "a" / "m.pt")
    loaded = load_checkpoint(tmp_path / "a" / "m.pt", to_train=True)
    content.config = without_folders(content.config)
    for item in dataclasses.fields(Checkpoint):
        assert equal(getattr(content, item.name), getattr(loaded, item.name)), item.name
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["m.pt"]


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("model", "concat_features", False),
        ("model", "diffusion_channels", 0),
        ("model", "diffusion_level", 0),
        ("model", "nbp_factor", "sigmoid"),
        ("model", "head_padding", "zeros"),
        ("diffusion", "logit_skip", "none"),
        ("diffusion", "mask_range", "signed"),
        ("train", "augment", "none"),
        ("train", "ema_warmup", True),
        ("train", "dice_steps", 0),
        ("train", "soft_masks", False),
        ("train", "crop_foreground", "pixel"),
    ],
)
def test_what_is_older_than_an_option_was_trained_without_it(content, tmp_path, group, name, value):
    content.config["train"] = dataclasses.asdict(TrainOptions())
    del content.config[group][name]
    save_checkpoint(content, tmp_path / "m.pt")
    assert load_checkpoint(tmp_path / "m.pt").config[group][name] == value


IDLE = {
    "model": {"self_condition": False, "nbp_activation": "sigmoid", "concat_image": True, "condition_labels": True},
    "diffusion": {
        "zero_terminal_snr": False,
        "loss_weighting": "none",
        "min_snr_gamma": 2.0,
        "own_predictions": 0.0,
    },
}


def with_options(content, path, model=(), diffusion=()):
    """The checkpoint as version 0.1.0 wrote it, but for these options."""
    for group, changed in (("model", model), ("diffusion", diffusion)):
        content.config[group] |= IDLE[group] | dict(changed)
    save_checkpoint(content, path)
    return path


@pytest.mark.parametrize("to_train", [True, False])
def test_options_that_are_gone_are_ignored_where_they_did_nothing(content, tmp_path, to_train):
    config = {group: dict(values) for group, values in content.config.items()}
    loaded = load_checkpoint(with_options(content, tmp_path / "m.pt"), to_train)
    assert loaded.config["model"] == config["model"] and loaded.config["diffusion"] == config["diffusion"]
    assert equal(dict(loaded.build()[0].state_dict()), dict(content.model))


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("model", "self_condition", True),
        ("model", "nbp_activation", "sine"),
        ("model", "concat_image", False),
        ("model", "condition_labels", False),
        ("diffusion", "zero_terminal_snr", True),
    ],
)
def test_a_checkpoint_that_used_one_is_refused_with_the_version_to_use(content, tmp_path, group, name, value):
    path = with_options(content, tmp_path / "m.pt", **{group: {name: value}})
    for to_train in (True, False):
        with pytest.raises(UserError) as error:
            load_checkpoint(path, to_train)
        gone = "which this version no longer has: use version 0.1.0"
        assert str(error.value) == f"{path}: was trained with {name} {value}, {gone}"


@pytest.mark.parametrize(
    ("name", "value", "version"),
    [("loss_weighting", "min_snr", "0.1.0"), ("own_predictions", 0.5, "0.1.0"), ("border_weight", 16.0, "0.4.0")],
)
def test_what_shaped_the_training_alone_is_refused_to_those_who_train_on(content, tmp_path, name, value, version):
    path = with_options(content, tmp_path / "m.pt", diffusion={name: value})
    loaded = load_checkpoint(path)
    assert equal(dict(loaded.build()[0].state_dict()), dict(content.model))
    save_checkpoint(loaded, tmp_path / "again.pt")  # as --fit_temperature does: it still says how it was trained
    for one in (path, tmp_path / "again.pt"):
        with pytest.raises(UserError, match=f"was trained with {name} {value}, which .* use version {version}"):
            load_checkpoint(one, to_train=True)


GONE_WITH = {"image_size": 16, "num_channels": 8, "channel_mult": "1,2", "num_res_blocks": 1}


def older_than_condition_labels(content, path, **model):
    """A checkpoint of a version that showed labels to the diffusion alone, without an option for it."""
    content.config["model"] |= IDLE["model"] | model
    del content.config["model"]["condition_labels"]
    network = build_model(ModelOptions(**{**GONE_WITH, **model}), 3, 1, 2)
    content.model = network.state_dict()
    content.model.pop("condition_model.label_embedding.weight", None)
    content.ema = {"0.99": dict(network.named_parameters())}
    for name, weights in content.ema["0.99"].items():
        content.ema["0.99"][name] = weights.detach()
    save_checkpoint(content, path)
    return path


@pytest.mark.parametrize(("version", "class_cond"), [("v2", False), ("v1", True), ("unet", True)])
def test_an_older_checkpoint_without_labels_in_a_condition_model_loads(content, tmp_path, version, class_cond):
    path = older_than_condition_labels(content, tmp_path / "m.pt", version=version, class_cond=class_cond)
    assert IDLE["model"].keys().isdisjoint(load_checkpoint(path).config["model"])


def test_an_older_checkpoint_whose_condition_model_saw_no_labels_is_refused(content, tmp_path):
    path = older_than_condition_labels(content, tmp_path / "m.pt", version="v2", class_cond=True)
    with pytest.raises(UserError, match="was trained with condition_labels False, which .* use version 0.1.0"):
        load_checkpoint(path)


def test_build_gives_the_network_and_its_diffusion(content, tmp_path):
    save_checkpoint(content, tmp_path / "m.pt")
    model, diffusion = load_checkpoint(tmp_path / "m.pt").build()
    assert equal(dict(model.state_dict()), dict(content.model))
    assert model.label_embedding.num_embeddings == 2 and model.training
    assert diffusion.num_timesteps == 10 and diffusion.objective == "v"


def test_weights_by_name(content):
    model, _ = content.build()
    name = next(iter(content.ema["0.5"]))
    for weights, expected in [("ema", content.ema["0.99"]), ("0.5", content.ema["0.5"]), ("model", content.model)]:
        content.load_weights(model, weights)
        assert torch.equal(dict(model.named_parameters())[name], expected[name])
    with pytest.raises(UserError, match="--weights 0.9: the checkpoint has model, ema, 0.99, 0.5"):
        content.load_weights(model, "0.9")


def refused(path, **options):
    with pytest.raises(UserError) as error:
        load_checkpoint(path, **options)
    line = str(error.value)
    assert options.get("where", str(path)) in line and "\n" not in line
    return line


class Evil:
    """An object whose pickle runs code when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("how", ["torch", "legacy", "pickle"])
def test_code_in_a_pickle_does_not_run(content, tmp_path, how):
    path, touched = tmp_path / "evil.pt", tmp_path / "touched"
    evil = {"format": module.FORMAT, **vars(content), "step": Evil(touched)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(evil["step"]))
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=how == "torch")
    assert ("was not loaded" if how == "torch" else "is no checkpoint of this program") in refused(path)
    assert not touched.exists()
    if how == "pickle":
        pickle.loads(path.read_bytes()).close()
        assert touched.exists()  # so it would have run


@pytest.mark.parametrize("module", [b"builtins", b"__builtin__"])
def test_a_pickle_asks_for_no_memory(tmp_path, module):
    """torch calls bytearray(10**9) of a pickle even with weights_only."""
    path, calls = tmp_path / "m.pt", b"\x80\x02c" + module + b"\nbytearray\nJ\x00\xca\x9a\x3b\x85R."
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {"data.pkl": calls, "version": b"3\n", "byteorder": b"little"}.items():
            archive.writestr(f"m/{name}", data)
    assert f"{path}: holds more than plain data" in refused(path)


@pytest.mark.parametrize("size", [4, 10_000])
def test_a_tensor_claims_what_its_record_holds(content, tmp_path, size):
    """A shorter record would let torch read on in the next ones, and a small file claim much memory."""
    whole, path = tmp_path / "whole.pt", tmp_path / "m.pt"
    save_checkpoint(content, whole)
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(path, "w") as changed:
        for item in archive.infolist():
            data = archive.read(item)
            changed.writestr(item.filename, data[:size].ljust(size, b"0") if item.filename.endswith("/5") else data)
    assert "claim other bytes than those that its records hold" in refused(path)


def test_files_that_are_no_checkpoint(tmp_path, content):
    line = ": no such file; a run writes last.pt and model*.pt into its --out_dir"
    assert refused(tmp_path / "none.pt") == f"{tmp_path / 'none.pt'}{line}"
    assert refused(tmp_path / "none.pt", where="--model_path none.pt") == f"--model_path none.pt{line}"
    assert "is a folder without best.pt and last.pt" in refused(tmp_path)
    for name, data in [("empty", b""), ("text", b"step,loss\n1,2\n"), ("nul", bytes(1000)), ("zip", b"PK\x03\x04" * 9)]:
        (tmp_path / name).write_bytes(data)
        assert refused(tmp_path / name, remedy="remove it").endswith("; remove it")
    assert refused(tmp_path / "empty") == f"{tmp_path / 'empty'}: is empty; copy it again or train anew"
    (tmp_path / "model000003.pt").touch()
    (tmp_path / "model000002.pt").touch()
    assert refused(tmp_path / "model000003.pt").endswith(
        "copy it again, or use the checkpoint before it, model000002.pt"
    )


def test_foreign_torch_files(tmp_path, content):
    for number, foreign in enumerate([{"conv.weight": torch.ones(2)}, torch.ones(3), [1, 2], {"format": "other"}]):
        path = tmp_path / f"{number}.pt"
        torch.save(foreign, path)
        assert "is no checkpoint of this program" in refused(path)
    torch.save({"format": module.FORMAT, "step": 3}, tmp_path / "half.pt")
    refused(tmp_path / "half.pt")


@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.9, 0.999])
def test_truncated(content, tmp_path, truncate, fraction):
    save_checkpoint(content, tmp_path / "m.pt")
    refused(truncate(tmp_path / "m.pt", fraction))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_random_damage_is_never_a_crash(content, tmp_path):
    save_checkpoint(content, tmp_path / "m.pt")
    good = (tmp_path / "m.pt").read_bytes()
    generator = torch.Generator().manual_seed(0)
    for trial in range(30):
        data = bytearray(good)
        # The pickle lies near the start and the directory of the zip at the end; damage both, and the rest.
        low, high = [(0, 4000), (len(data) - 4000, len(data)), (0, len(data))][trial % 3]
        for place in torch.randint(low, high, (200,), generator=generator).tolist():
            data[place] = int(torch.randint(256, (), generator=generator))
        (tmp_path / "bad.pt").write_bytes(data)
        try:
            load_checkpoint(tmp_path / "bad.pt")  # damage to a tensor's values alone may pass
        except UserError as error:
            assert "\n" not in str(error)


def test_sixty_flipped_bits_are_refused_or_change_nothing(content, tmp_path):
    """Bits that nothing reads lie between the records, and in their dates."""
    options = ModelOptions(version="unet", image_size=8, num_channels=2, channel_mult="1", attention_resolutions="")
    model = build_model(options, 3, 1, 2)
    content.config["model"], content.model = dataclasses.asdict(options), model.state_dict()
    content.ema = {"0.9": {name: weights.detach().clone() for name, weights in model.named_parameters()}}
    content.optimizer = {}
    save_checkpoint(content, tmp_path / "m.pt")
    good, whole = (tmp_path / "m.pt").read_bytes(), load_checkpoint(tmp_path / "m.pt", to_train=True)
    generator, refusals = torch.Generator().manual_seed(0), 0
    for place in torch.randint(8 * len(good), (60,), generator=generator).tolist():
        data = bytearray(good)
        data[place // 8] ^= 1 << place % 8
        (tmp_path / "bad.pt").write_bytes(data)
        try:
            found = load_checkpoint(tmp_path / "bad.pt", to_train=True)
        except UserError as error:
            refusals += 1
            assert "\n" not in str(error) and str(tmp_path / "bad.pt") in str(error)
        else:
            assert equal(vars(found), vars(whole))
    assert refusals > 15


def test_damage_names_its_tensor_and_the_checkpoint_before(content, tmp_path):
    for step in (3, 500):
        save_checkpoint(content, tmp_path / f"model{step:06d}.pt")
    path = tmp_path / "model000500.pt"
    record = next(record for record in check_records(path) if record.name.endswith("data/2"))
    data = bytearray(path.read_bytes())
    data[record.start + 1] ^= 64
    path.write_bytes(data)
    (tmp_path / "last.pt").hardlink_to(path)
    damage = f"(the tensor model.{list(content.model)[2]}: bytes differ from their checksum)"
    remedy = "copy it again, or use the checkpoint before it, model000003.pt"
    for name in ("model000500.pt", "last.pt"):
        assert refused(tmp_path / name) == f"{tmp_path / name}: is damaged, or no checkpoint {damage}; {remedy}"


def test_a_newer_format_names_its_version(content, tmp_path):
    torch.save({"format": "medsegdiff-checkpoint-3", "written_by": "0.9.0"}, tmp_path / "m.pt")
    assert refused(tmp_path / "m.pt").endswith(
        f"was written by version 0.9.0, newer than this one, {VERSION}: use that version"
    )


def test_it_names_the_version_that_wrote_it(content, tmp_path):
    save_checkpoint(content, tmp_path / "m.pt")
    assert torch.load(tmp_path / "m.pt", weights_only=True)["written_by"] == VERSION == guided_diffusion.__version__


def test_older_checkpoints_list_names_and_folders_which_leave_when_written_again(content, tmp_path):
    old = {"format": module.OLD_FORMAT, **vars(content)}
    old["config"] = old["config"] | {"data": {"data_name": "ISIC", "data_dir": "/home/marguerite"}}
    old["validation"] = {"step": 3, "dice": 0.5, "cases": ["marguerite_1", "marguerite_2"]}
    torch.save(old, tmp_path / "old.pt")
    loaded = load_checkpoint(tmp_path / "old.pt")
    assert loaded.config["data"]["data_dir"] == "/home/marguerite"
    assert loaded.validation == {"step": 3, "dice": 0.5, "cases": names_digest(["marguerite_2", "marguerite_1"])}
    save_checkpoint(loaded, tmp_path / "new.pt")
    assert b"marguerite" not in (tmp_path / "new.pt").read_bytes()


def test_a_failing_write_leaves_the_old_file(content, tmp_path, monkeypatch):
    path = tmp_path / "m.pt"
    save_checkpoint(content, path)
    before = file_hash(path)

    def half(value, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError) as error:
        save_checkpoint(content, path)
    assert describe_os_error(error.value) == f"{path}: No space left on device"
    assert file_hash(path) == before
    assert [file.name for file in tmp_path.iterdir()] == ["m.pt"]


def test_a_full_device_raises_the_system_s_own_error(content, tmp_path, monkeypatch):
    """torch hides the system's error behind one of its own ("unexpected pos"): the user needs the system's."""

    class Full:
        room = 5000

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def write(self, data):
            if len(data) > self.room:
                raise OSError(28, "No space left on device")
            self.room -= len(data)
            return len(data)

        def flush(self):
            pass

    monkeypatch.setattr(module, "open", lambda path, mode: open(path, mode).close() or Full(), raising=False)
    with pytest.raises(OSError) as error:
        save_checkpoint(content, tmp_path / "m.pt")
    assert describe_os_error(error.value) == f"{tmp_path / 'm.pt'}: No space left on device"
    assert not list(tmp_path.iterdir())


def test_newest_is_by_number(tmp_path):
    assert newest_checkpoint(tmp_path) is None and newest_checkpoint(tmp_path / "none") is None
    for name in (
        "model000500.pt",
        "model900000.pt",
        "model1000000.pt",
        ".model2000000.12.pt",
        "modelbest.pt",
        "model9",
    ):
        (tmp_path / name).touch()
    assert newest_checkpoint(tmp_path) == tmp_path / "model1000000.pt"
    assert checkpoint_path(tmp_path, 500) == tmp_path / "model000500.pt"


def test_hash_is_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_hash(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
