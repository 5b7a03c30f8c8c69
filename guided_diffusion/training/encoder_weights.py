"""Weights for the network of --encoder: read from a file, a folder or the Hub, and compared name by name."""

import warnings
from pathlib import Path

import torch

from ..checkpoint import LARGEST_PICKLE
from ..io.archives import DamagedArchive, check_records
from ..io.hub import fetch_from_hub, is_on_hub
from ..io.memory import check_room
from ..io.storage import fetch_file, is_remote
from ..models.pretrained import PretrainedEncoder
from ..models.saved_weights import check_finite, check_plain
from ..models.sharding import load_whole
from ..runtime.console import counted, listed
from ..runtime.errors import UserError
from ..runtime.extras import optional

NAMES = ("model.safetensors", "pytorch_model.bin")  # of the file in a folder, the first that is there
NESTED = ("state_dict", "model")  # keys below which files of training programs have the weights
COUNTER = "num_batches_tracked"  # of a batch norm; it has no effect on frozen statistics
MOST_SHOWN = 3


def find_encoder_weights(train, processes):
    """The tensors by name that --encoder_weights of the `TrainOptions` holds; None without it.

    No code in the file is run. Raises `UserError` for a path without weights and for a damaged file.
    """
    path = train.encoder_weights
    return processes.by_machine(lambda: read_encoder_weights(path)) if path else None


def read_encoder_weights(path):
    """See `find_encoder_weights`. path: of a file or folder, which may be remote, or hf://OWNER/NAME."""
    where = f"--encoder_weights {path}"
    if is_on_hub(path):
        folders = (fetch_from_hub(path, [name]) for name in NAMES)  # the second file only without the first
        local = next((folder for folder, name in zip(folders, NAMES, strict=True) if (folder / name).is_file()), None)
        if local is None:
            raise UserError(f"{where}: holds no {' or '.join(NAMES)}")
    else:
        local = fetch_file(path) if is_remote(path) else Path(path)
    if local.is_dir():
        found = [local / name for name in NAMES if (local / name).is_file()]
        if not found:
            raise UserError(f"{where}: holds no {' or '.join(NAMES)}; name a file of weights")
        local = found[0]
    if not local.is_file():
        raise UserError(f"{where}: no such file or folder")
    check_room(local, "weights", local.stat().st_size)
    content = _of_safetensors(local, where) if local.suffix == ".safetensors" else _of_torch(local, where)
    for key in NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise UserError(f"{where}: holds no state dict, {{name: tensor}}; save model.state_dict() of timm's network")
    state = {str(name).removeprefix("module."): tensor for name, tensor in content.items()}
    try:
        for name, tensor in state.items():
            check_plain(name, tensor)
            check_finite(name, tensor)
    except UserError as error:
        raise UserError(f"{where}: {error}; use an unchanged copy") from None
    return state


def _of_safetensors(path, where):
    safetensors = optional("safetensors", "encoders", where)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except Exception as error:  # damaged bytes raise nearly anything
        raise UserError(f"{where}: is no file of safetensors, or a damaged one; copy it again") from error


def _of_torch(path, where):
    with open(path, "rb") as file:
        is_archive = file.read(2) == b"PK"
    try:
        if is_archive:
            check_records(path, LARGEST_PICKLE)
    except DamagedArchive as error:
        raise UserError(f"{where}: is damaged ({error}); copy it again") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on other versions of pickle
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise nearly anything
        raise UserError(
            f"{where}: holds more than tensors, or is damaged, and was not loaded; save model.state_dict() alone"
        ) from error


def load_encoder(model, state, where):
    """Give the encoder of a network its weights. Returns a line on what was done.

    state: {timm's name: tensor}, perhaps with layers that the encoder lacks, as the classifier. A first layer for
    another number of channels is adapted: the mean over the old channels stands for each new one, times old / new, so
    that the sum over channels keeps its size. where: the beginning of messages. Raises `UserError` for weights that
    lack a layer or have another shape.
    """
    prefix, encoder = next((n, m) for n, m in model.named_modules() if isinstance(m, PretrainedEncoder))
    wanted = {name: tensor for name, tensor in encoder.net.state_dict().items() if not name.endswith(COUNTER)}
    taken, notes = {}, ""
    for name, own in wanted.items():
        value = state.get(name.removeprefix("model."))
        if value is not None and name.removesuffix(".weight") in encoder.first_layers and value.dim() == own.dim():
            old, new = value.shape[1], own.shape[1]
            if old != new:
                value = value.mean(dim=1, keepdim=True).expand(-1, new, -1, -1) * (old / new)
                notes = f"; the mean of its {old} channels stands for each of {new}"
        if value is not None and value.shape != own.shape:
            raise UserError(f"{where}: {name} has the shape {list(value.shape)}, not {list(own.shape)}")
        if value is not None:
            taken[name] = value.to(torch.float32)
    missing = [name.removeprefix("model.") for name in wanted if name not in taken]
    if missing:
        raise UserError(
            f"{where}: lacks {len(missing)} of {counted(len(wanted), 'tensor')}, as {listed(missing, MOST_SHOWN)}; is "
            "it of the same network, with timm's names?"
        )
    load_whole(model, {f"{prefix}.net.{name}": value for name, value in taken.items()}, strict=False)
    used = {name.removeprefix("model.") for name in wanted}
    unused = [name for name in state if name not in used and not name.endswith(COUNTER)]
    line = f"{where}: all {counted(len(taken), 'tensor')} of the encoder begin with its weights{notes}"
    return line + (f"; of it not used {len(unused)}: {listed(unused, MOST_SHOWN)}" if unused else "")
