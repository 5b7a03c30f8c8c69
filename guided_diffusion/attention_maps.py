"""A look inside V2: where the anchors point and what the SS-Former attends to, as one picture of one image."""

import numpy as np

from .condition import UncertainSpatialAttention
from .pictures import captions, grey, heat, mosaic, resized
from .spectrum import FourierAffinity, NBPFilter

TILE = 112


class AttentionRecorder:
    """While inside, keeps what the attention modules of a model put out at each call (on the CPU, as float32).

    outputs: {module's name: list over calls of arrays}: an anchor's map [N, 1, H, W], called once a batch; an
    affinity's weights [E * N, heads, L, L] and a filter's values likewise, called once a step. Only the first and the
    last call are kept. Modules of other variants have none of them, and the dict stays empty.
    """

    def __init__(self, model):
        kinds = (UncertainSpatialAttention, FourierAffinity, NBPFilter)
        self.modules = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
        self.outputs = {}

    def __enter__(self):
        def keep(name):
            def hook(_module, _inputs, output):
                calls = self.outputs.setdefault(name, [])
                calls[1:] = [output.detach().float().cpu().numpy()]

            return hook

        self.hooks = [module.register_forward_hook(keep(name)) for name, module in self.modules.items()]
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()

    def of_kind(self, kind):
        """{name: calls} of the modules of one class, in the model's order."""
        return {name: self.outputs[name] for name in self.modules if isinstance(self.modules[name], kind)}


def attention_sheet(image, recorder, index, focus):
    """One image's sheet, RGB uint8, or None where the model has nothing to show.

    image: RGB uint8 [H, W, 3]. recorder: after the batch was drawn. index: the image's row in the batch (its first
    member is shown). focus: a bool mask [H, W], the answer: the "query" tiles show where its centre looks.
    First row: the image and the anchors' maps. Then a row for each cross-attention, at the first step and at the last:
    the attention that each place gets on average, what the query at the focus's centre attends to, and the filter over
    pairs of frequencies. Attention is scaled to its own maximum, a filter stretched over the range in its caption.
    """
    anchors = recorder.of_kind(UncertainSpatialAttention).values()
    affinities = recorder.of_kind(FourierAffinity)
    if not anchors and not affinities:
        return None
    proportions = image.shape[:2]
    tiles = [("image", resized(image, TILE))]
    for level, calls in enumerate(anchors):
        tiles.append((f"anchor {level + 1}", resized(heat(calls[0][index, 0]), TILE, proportions)))
    rows = [tiles]
    for name, calls in affinities.items():
        filters = recorder.outputs.get(f"{name}.filter")
        row = []
        for which, when in ((0, "first"), (-1, "last")):
            pairs = filters[which][index] if filters else None
            row += _attention_tiles(f"{_short(name)}, {when}", calls[which][index], pairs, proportions, focus)
        rows.append(row)
    width = max(len(row) for row in rows)
    strips = []
    for row in rows:
        blank = [("", np.full((TILE, TILE, 3), 255, dtype=np.uint8))] * (width - len(row))
        texts, pictures = zip(*row, *blank, strict=True)
        strips += [captions(texts, TILE), mosaic([list(pictures)])]
    return np.concatenate(strips)


def _attention_tiles(label, weights, pairs, proportions, focus):
    weights = weights.mean(axis=0)  # heads, L, L -> L, L
    side = round(len(weights) ** 0.5)  # the network sees every image square
    received = weights.mean(axis=0).reshape(side, side)
    query = weights[_focus_token(focus, side)].reshape(side, side)
    row = [
        (label, resized(heat(_scaled(received)), TILE, proportions)),
        ("of the query", resized(heat(_scaled(query)), TILE, proportions)),
    ]
    if pairs is not None:
        low, high = pairs.mean(axis=0).min(), pairs.mean(axis=0).max()
        stretched = (pairs.mean(axis=0) - low) / max(high - low, 1e-12)
        row.append((f"filter {low:.3f}..{high:.3f}", resized(grey(stretched), TILE)))
    return row


def _focus_token(focus, side):
    """The index of the position at the centre of a mask (of the image, where it is empty)."""
    centre = np.argwhere(focus).mean(axis=0) if focus.any() else np.array(focus.shape) / 2
    row, column = (int(c * side / size) for c, size in zip(centre, focus.shape, strict=True))
    return row * side + column


def _short(name):
    """semantic.blocks.0.read.affinity -> block 1 read."""
    parts = name.split(".")
    return f"block {int(parts[-3]) + 1} {parts[-2]}"


def _scaled(values):
    return values / max(float(np.abs(values).max()), 1e-12)
