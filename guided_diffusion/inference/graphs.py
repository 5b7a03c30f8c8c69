"""Graphs for programs without this one, such as viewers: the condition network and one denoising step.

They are written as .pt2 (torch.export, for torch and its C++ library) and as .onnx (for ONNX Runtime), read back and
compared with the network. The number of images is free; their size is the training size.
"""

import warnings
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..diffusion.losses import class_probabilities
from ..runtime.errors import UserError
from ..runtime.extras import optional
from ..runtime.seeds import seeded_generator

FORMATS = ("pt2", "onnx")
LARGEST_DIFFERENCE = 1e-4  # between a graph and the network; the rounding of float32 gives a few 1e-6
IMAGES_TRACED, IMAGES_COMPARED = 2, 3  # of the batches that are traced and compared, as the number of images is free


class ConditionGraph(torch.nn.Module):
    """image [N, C, H, W], normalised, and perhaps label [N] -> the probability [N, K, H, W] and the condition's parts.

    A V1 has no probability here: its coarse mask depends on x_t.
    """

    def __init__(self, model, exclusive, temperature):
        super().__init__()
        self.model, self.exclusive, self.temperature = model, exclusive, temperature

    def forward(self, *inputs):
        """The probability, if there is one, and the parts: a tuple of tensors."""
        condition = self.model.encode(*inputs)
        return (*self._probability(condition), *(parts_of(condition) if hasattr(self.model, "head") else ()))

    def _probability(self, condition):
        logits = getattr(condition, "logits", getattr(condition, "coarse", None))
        if logits is None:
            return ()
        return (class_probabilities(logits / self.temperature, self.exclusive),)


class DenoiseGraph(torch.nn.Module):
    """x_t [N, K, H, W], t int64 [N] and the condition's parts -> x_0 as the network sees it at x_t, [N, K, H, W].

    x_0 is cut to [-1, 1]. With a learned variance its place between the bounds follows, in [0, 1]; of a V1 then the
    coarse mask's probability. like: a condition of the network, for the form of the parts.
    """

    def __init__(self, model, diffusion, like):
        super().__init__()
        self.model, self.diffusion, self.like = model, diffusion, like

    def forward(self, x_t, t, *parts):
        """x_0 and what follows it: a tuple of tensors."""
        found = self.diffusion.denoiser(self.model, condition_of(parts, self.like))(x_t, t)
        more = () if found.variance_fraction is None else (found.variance_fraction,)
        if found.coarse is not None and not hasattr(self.like, "coarse"):
            more += (class_probabilities(found.coarse, self.diffusion.exclusive),)
        return (found.x0, *more)


@dataclass
class Graph:
    """A graph to write. inputs, outputs: their names in order. example: inputs for a number of images."""

    name: str
    module: torch.nn.Module
    inputs: list
    outputs: list
    example: object

    @property
    def described(self):
        """For config.json."""
        return {"inputs": self.inputs, "outputs": self.outputs}


def parts_of(condition):
    """The tensors of a condition, a NamedTuple of tensors, tuples of them and None, as one flat tuple."""
    flat = []
    for part in condition:
        flat += part if isinstance(part, tuple) else [] if part is None else [part]
    return tuple(flat)


def condition_of(parts, like):
    """The condition of the form of `like` with these `parts_of` it."""
    waiting = iter(parts)

    def take(part):
        if isinstance(part, tuple):
            return tuple(take(one) for one in part)
        return None if part is None else next(waiting)

    return type(like)(*map(take, like))


def _names_of_parts(condition):
    names = []
    for name, part in zip(condition._fields, condition, strict=True):
        if isinstance(part, tuple):
            names += [f"condition_{name}_{n}" for n in range(len(part))]
        elif part is not None:
            names.append(f"condition_{name}")
    return names


def graphs_of(model, diffusion, channels, image_size, temperature=1.0):
    """The `Graph`s of a network, on the CPU in float32 without dropout: "condition" and, with a diffusion, "denoise".

    channels: C. image_size: of the images, in pixels. temperature: for the probability.
    """
    labels = 0 if model.label_embedding is None else model.label_embedding.num_embeddings

    def images(count):
        generator = seeded_generator("graph", count)
        image = torch.randn(count, channels, image_size, image_size, generator=generator)
        return (image, *([torch.arange(count) % labels] if labels else []))

    def noisy(count):
        generator = seeded_generator("step", count)
        x_t = torch.randn(count, model.mask_channels, image_size, image_size, generator=generator)
        t = torch.randint(diffusion.num_timesteps, (count,), generator=generator)
        return (x_t, t, *parts_of(model.encode(*images(count))))

    like, has_diffusion = model.encode(*images(IMAGES_TRACED)), hasattr(model, "head")
    probability = [] if hasattr(like, "features") else ["probability"]
    parts = _names_of_parts(like) if has_diffusion else []
    condition = ConditionGraph(model, diffusion.exclusive, temperature)
    inputs = ["image", *(["label"] if labels else [])]
    found = [Graph("condition", condition, inputs, probability + parts, images)]
    if has_diffusion:
        variance, coarse = ["variance"] if model.learn_sigma else [], [] if probability else ["coarse"]
        step = DenoiseGraph(model, diffusion, like)
        found.append(Graph("denoise", step, ["x_t", "t", *parts], ["x_0", *variance, *coarse], noisy))
    return found


def write_graphs(folder, graphs, formats):
    """Write each graph as NAME.FORMAT into `folder`; read it back and compare it with the network on random images.

    Returns {file name: the largest difference}, each relative to the output's largest value where that exceeds 1.
    Raises `UserError` where it exceeds `LARGEST_DIFFERENCE`, and for a graph that cannot be written.
    """
    differences = {}
    with torch.no_grad(), _exporting():
        for graph in graphs:
            program = _traced(graph)
            for kind in formats:
                path = folder / f"{graph.name}.{kind}"
                run = {"pt2": _write_pt2, "onnx": _write_onnx}[kind](path, program, graph)
                differences[path.name] = _largest_difference(graph, run)
                if not differences[path.name] <= LARGEST_DIFFERENCE:
                    raise UserError(
                        f"{path.name}: differs from the network by {differences[path.name]:.2g}, more than "
                        f"{LARGEST_DIFFERENCE:g}; nothing was written. Leave out --{kind}"
                    )
    return differences


def _traced(graph):
    graph.module(*graph.example(IMAGES_TRACED))  # makes the tables of the schedule, which the graph then holds
    batch = torch.export.Dim("batch", min=1, max=2**16)
    example = graph.example(IMAGES_TRACED)
    named = 2 if graph.name == "denoise" else 0  # arguments before *parts
    shapes = [{0: batch} for _ in example]
    shapes = (*shapes[:named], tuple(shapes[named:]))
    program = torch.export.export(graph.module, example, dynamic_shapes=shapes, strict=False)
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)  # it names this machine's folders
    return program


def _write_pt2(path, program, graph):
    torch.export.save(program, path)
    module = torch.export.load(path).module()
    return lambda values: module(*values)


def _write_onnx(path, program, graph):
    for name in ("onnx", "onnxscript"):
        optional(name, "onnx", "--onnx True")
    runtime = optional("onnxruntime", "onnx", "--onnx True")
    names = {"input_names": graph.inputs, "output_names": graph.outputs}
    written = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    for node in written.model.graph.all_nodes():
        node.metadata_props.clear()  # the lines of code, with this machine's folders
    written.save(path)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(values):
        given = {name: value.numpy() for name, value in zip(graph.inputs, values, strict=True)}
        return tuple(map(torch.from_numpy, session.run(graph.outputs, given)))

    return run


def _largest_difference(graph, run):
    values = graph.example(IMAGES_COMPARED)
    expected, found = graph.module(*values), run(values)
    parts = [
        ((one - other).abs().max() / max(1.0, one.abs().max().item())).item()
        for one, other in zip(expected, found, strict=True)
    ]
    return max(parts)


@contextmanager
def _exporting():
    """A context without the warnings of torch's exporters, which are about their own future."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
