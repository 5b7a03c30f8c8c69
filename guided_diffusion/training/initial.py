"""The weights that a new run begins with, --init_from: those of another model, by name and shape."""

from dataclasses import dataclass, field

import torch

from ..checkpoint import checkpoint_file, load_checkpoint
from ..io.hub import is_on_hub
from ..io.storage import fetch_file, is_remote
from ..models.sharding import load_whole
from ..runtime.console import counted, listed
from ..runtime.errors import UserError

STEM = "encoder.0.entry.conv.weight"  # the first layer of an encoder, [D, channels that it sees, 3, 3]
SEEN = {  # what each encoder sees, in order, by the beginning of its name
    "image_encoder.": ("image",),
    "condition_model.": ("image",),
    "unet.": ("image",),
    "mask_encoder.": ("masks", "image"),
    "": ("masks", "image"),
}
# --class_activation follows from the data, and the other one is a synonym of --objective.
OF_DATA = ("class_activation", "predict_xstart", "preset")
MOST_LISTED = 10


def find_initial(train, processes):
    """The `Checkpoint` that --init_from names, local, in a blob store or on the Hub; None without one."""
    path = train.init_from
    if not path:
        return None
    where = f"--init_from {path}"

    def load():
        found = path if is_on_hub(path) else checkpoint_file(path, where)
        return load_checkpoint(fetch_file(found) if is_remote(found) else found, where=where)

    return processes.by_machine(load)  # which may fetch it


def network_values(initial):
    """The option values of a checkpoint that a run which begins with its weights has too: those of its network and its
    diffusion, and --crop, as structures of another scale look different to it."""
    values = initial.config["model"] | initial.config["diffusion"] | {"crop": initial.config["train"]["crop"]}
    return {name: value for name, value in values.items() if name not in OF_DATA}


@dataclass
class Fit:
    """Which weights fit. taken: {name: tensor} for the network. adapted: what was done to input layers, texts. left:
    names of the network that keep their random start. unused: names of the other model that the network lacks."""

    taken: dict = field(default_factory=dict)
    adapted: list = field(default_factory=list)
    left: list = field(default_factory=list)
    unused: list = field(default_factory=list)


def fit_weights(state, wanted, counts, own_counts, patches, keep_labels):
    """The `Fit` of a state dict to a network's, by name and shape.

    wanted: {name: tensor} of the network. counts, own_counts: {"image": channels, "masks": classes} of the state dict
    and of the network. patches: the pixels that become channels of one, {"image", "masks": of an encoder that sees x_t
    too}. keep_labels: whether both mean the same class labels. An encoder's first layer is adapted to other numbers of
    channels (see `adapted_stem`).
    """
    fit, done = Fit(), set()
    for name, own in wanted.items():
        value = state.get(name)
        if name.endswith("label_embedding.weight") and not keep_labels:
            value = None
        seen = _seen_by(name) if value is not None and name.endswith(STEM) else ()
        changed = {what for what in seen if counts[what] != own_counts[what]}
        if changed:
            patch = patches["masks" if "masks" in seen else "image"]
            value = adapted_stem(value, own.shape[1], [(counts[what], own_counts[what]) for what in seen], patch)
        if value is None or value.shape != own.shape:
            fit.left.append(name)
        else:
            fit.taken[name] = value
            done |= changed
    for what, noun in (("image", "channels"), ("masks", "classes")):
        if what in done:
            fit.adapted.append(f"the mean of its {counts[what]} {noun} stands for each of {own_counts[what]}")
    fit.unused = [name for name in state if name not in wanted]
    return fit


def _seen_by(name):
    return next(seen for start, seen in SEEN.items() if name.startswith(start))


def adapted_stem(weight, size, numbers, patch):
    """An encoder's first layer for other numbers of channels, or None where more than these numbers differ.

    Where a number differs, the mean over the old channels stands for each new one, times old / new, so that the sum
    over channels keeps its size.
    weight: [D, patch (sum of old numbers) + rest, 3, 3]. size: of the new layer's channels. numbers: (old, new) of each
    part that the encoder sees, in order. patch: the pixels that become channels of one.
    """
    rest = weight.shape[1] - patch * sum(old for old, _ in numbers)
    if rest < 0 or size != patch * sum(new for _, new in numbers) + rest:
        return None
    parts = []
    for part, (old, new) in zip(weight.split([*(patch * old for old, _ in numbers), rest], 1), numbers, strict=False):
        if old != new:
            mean = part.unflatten(1, (old, patch)).mean(dim=1, keepdim=True)
            part = (mean * (old / new)).expand(-1, new, -1, -1, -1).flatten(1, 2)
        parts.append(part)
    return torch.cat([*parts, weight[:, weight.shape[1] - rest :]], dim=1)


def initialise(model, initial, dataset, where):
    """Give a network the weights of a `Checkpoint` where names and shapes agree. Returns a line on what was done.

    dataset: the training data. where: the checkpoint's name in messages. Raises `UserError` if no weight fits.
    """
    rate, state = initial.weights("ema")
    counts = {"image": initial.image_channels, "masks": len(initial.class_names)}
    own_counts = {"image": dataset.image_channels, "masks": len(dataset.class_names)}
    keep_labels = list(initial.label_names) == list(dataset.label_names)
    patches = {"image": model.shape.patch**2, "masks": getattr(model, "block", model.shape.patch) ** 2}
    fit = fit_weights(state, model.state_dict(), counts, own_counts, patches, keep_labels)
    if not fit.taken:
        version = initial.config["model"]["version"]
        raise UserError(f"{where}: none of its weights fits the network; its own is a {version}, see its config.yaml")
    load_whole(model, fit.taken, strict=False)
    kind = "of the last step" if rate == "model" else f"averaged at {rate}"
    total = len(fit.taken) + len(fit.left)
    line = (
        f"{where}: {len(fit.taken)} of {counted(total, 'tensor')} begin with its weights (step {initial.step}, {kind})"
    )
    line += "".join(f"; {text}" for text in fit.adapted)
    for names, text in ((fit.left, "at random begin"), (fit.unused, "of it not used")):
        line += f"; {text} {len(names)}: {listed(names, MOST_LISTED)}" if names else ""
    return line
