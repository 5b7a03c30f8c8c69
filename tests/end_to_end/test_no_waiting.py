"""Steps of training and sampling on a GPU that is not there: on tensors without values, which torch follows.

In a step nothing may wait for the device, and no operation may mix devices.
"""

from types import SimpleNamespace

import pytest
import torch
from conftest import run_of
from helpers import batch_of
from networks import Blobs
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from guided_diffusion.config.fields import build
from guided_diffusion.config.options import DiffusionOptions, ModelOptions
from guided_diffusion.config.train_options import TrainOptions
from guided_diffusion.diffusion.gaussian_diffusion import build_diffusion
from guided_diffusion.inference.members import answer_in_one_pass, draw_members
from guided_diffusion.inference.plan import NO_STEPS, ONE_STEP, SamplingPlan
from guided_diffusion.inference.tiles import Tiled
from guided_diffusion.models.medsegdiff import build_model
from guided_diffusion.runtime.distributed import Processes
from guided_diffusion.training.loop import TrainLoop

pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA is not available")  # autocast says so and does nothing

CUDA = torch.device("cuda", 0)
COPIES = {"to", "_to_copy", "copy_"}
READS = {"item", "_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2"}


class NoWaiting(TorchDispatchMode):
    """Fails for an operation that waits for the device. arrivals: the copies to the CPU that nobody waits for."""

    def __init__(self):
        super().__init__()
        self.arrivals = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        named, name = named or {}, function.overloadpacket.__name__
        taken = [one for one in tree_leaves((arguments, named)) if isinstance(one, torch.Tensor)]
        is_near_device = any(one.is_cuda for one in taken)
        assert not (is_near_device and name in READS), f"{name} waits for the device"
        result = function(*arguments, **named)
        if name in COPIES and (source := taken[-1]).is_cuda != result.is_cuda:
            is_late = named.get("non_blocking", False) or any(one is True for one in arguments)
            assert is_late, f"a copy from {source.device} to {result.device} waits for the device"
            assert source.is_cuda or source.is_pinned(), "a copy waits for memory that is not pinned"
            self.arrivals += source.is_cuda
        elif is_near_device:
            foreign = [one for one in taken if not one.is_cuda and (one.ndim or name == "where")]
            assert not foreign, f"{name} takes tensors of both devices"
            assert not (name.startswith("index") and any(map(is_mask, tree_leaves(arguments[1:])))), f"{name} by a mask"
        return result


def is_mask(one):
    return isinstance(one, torch.Tensor) and one.dtype in (torch.bool, torch.uint8)


def pin(tensor):
    pinned = tensor.clone()
    pinned.has_been_pinned, pinned.constant = True, None  # torch would copy a known value to a real GPU
    return pinned


def backward(loss):
    """Autograd's engine, which needs a real GPU before it begins, in Python."""
    gradients = {loss.grad_fn: [torch.ones_like(loss)]}
    with torch.no_grad():
        while gradients:
            node = max(gradients, key=lambda node: -1 if hasattr(node, "variable") else node._sequence_nr())
            given = gradients.pop(node)
            if hasattr(node, "variable"):
                (gradient,), parameter = given, node.variable
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
                continue
            run = node if callable(node) else node.apply  # an operation of torch's, or one of ours
            found = run(*given, *[None] * (len(node._input_metadata) - len(given)))
            found = found if isinstance(found, tuple) else (found,)
            # Ours have a gradient, None, for the numbers behind their tensors too.
            for gradient, (other, place) in zip(found, node.next_functions, strict=False):
                if gradient is not None and other is not None:
                    gradient = gradient.sum_to_size(tuple(other._input_metadata[place].shape))
                    slots = gradients.setdefault(other, [])
                    slots += [None] * (place + 1 - len(slots))
                    slots[place] = gradient if slots[place] is None else slots[place] + gradient


@pytest.fixture
def gpu(monkeypatch):
    """A context in which there is a GPU whose tensors have no values; `waits` counts how often it is waited for."""
    found = SimpleNamespace(waits=0)

    def wait():
        found.waits += 1

    event = SimpleNamespace(synchronize=wait)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(record_event=lambda: event))
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: hasattr(tensor, "has_been_pinned"))
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield found


SMALL = {"image_size": 16, "num_channels": 8, "channel_mult": "1", "num_res_blocks": 1, "dropout": 0.1}


def network(version, **options):
    with CUDA:
        return build_model(build(ModelOptions, {**SMALL, "version": version, **options}), 2, 1, 3)


# ---- training --------------------------------------------------------------------------------------------------------

LOGITS = {"objective": "x0", "mask_loss": "bce_dice", "logit_skip": "both", "class_activation": "softmax"}
VARIANCE = {"version": "v1", "learn_sigma": True}
TRAININGS = {
    "v1, learned variance, half precision": (VARIANCE, {"coarse_every": 2}, {"grad_clip": 1.0}, "fp16"),
    "v2, in stages": ({"version": "v2", "class_cond": True}, LOGITS, {"condition_steps": 1}, "fp32"),
    "unet, item by item": ({"version": "unet"}, {"objective": "x0"}, {"microbatch": 1}, "fp32"),
}


@pytest.mark.parametrize("case", TRAININGS)
def test_a_training_step_waits_for_nothing_and_its_figures_come_in_one_copy(gpu, tmp_path, case):
    model, diffusion, train, precision = TRAININGS[case]
    with unset_fake_temporarily():
        dataset = Blobs(tmp_path, 16, need_masks=True)
        batch = batch_of(dataset, [0, 1])
        batch |= {"known": torch.ones_like(batch["mask"]), "label": torch.tensor([0, 2])}
    options = [build(ModelOptions, {**SMALL, **model}), build(DiffusionOptions, diffusion)]
    options += [build(TrainOptions, {"out_dir": str(tmp_path / "run"), "batch_size": 2, "max_steps": 3, **train})]
    run = run_of(*options, dataset, precision)
    loop = TrainLoop(run, network(**model), build_diffusion(options[1]), Processes(0, 1, CUDA))
    draw = loop._draw

    def draw_values(*arguments):
        with unset_fake_temporarily():
            return draw(*arguments)

    loop._draw = draw_values
    t, like = torch.zeros(2, dtype=torch.int64, device=CUDA), torch.zeros(2, 1, 16, 16, device=CUDA)
    for values in (loop.diffusion.schedule.levels, loop.diffusion.schedule.step_back, loop.diffusion._evidence_at):
        loop.diffusion._per_row(values, t, like)  # a run's first step sends the schedule
    for loop.step in range(1 + train.get("condition_steps", 0)):
        with NoWaiting() as watch:
            loop.train_step(batch)
        assert watch.arrivals == 1
    assert gpu.waits == 0


# ---- sampling --------------------------------------------------------------------------------------------------------

DRAWING = {"objective": "x0", "mask_loss": "bce", "logit_skip": "both"}
SAMPLINGS = {
    "bernoulli": ("v2", DRAWING, SamplingPlan("bernoulli", (900, 100), symmetric=True, scales=(1.25,)), 16),
    "ddpm": ("v1", {}, SamplingPlan("ddpm", (900, 100), published="v1"), 16),
    "ddim": ("v1", {}, SamplingPlan("ddim", (900, 100)), 16),
    "dpm_solver": ("v1", {}, SamplingPlan("dpm_solver", (900, 100), dynamic_threshold=0.995, published="v2"), 16),
    "unet": ("unet", {"objective": "x0"}, ONE_STEP, 16),
    "in tiles": ("v2", {**DRAWING, "class_activation": "softmax"}, SamplingPlan("bernoulli", (900, 100)), 24),
}


@pytest.mark.parametrize("case", SAMPLINGS)
def test_sampling_waits_for_nothing_but_its_result(gpu, case):
    version, options, plan, width = SAMPLINGS[case]
    model, diffusion = network(version, learn_sigma=version == "v1"), build_diffusion(build(DiffusionOptions, options))
    model = model if width == 16 else Tiled(model, 16, 0.25, rows=3)
    image = torch.zeros(2, 2, 16, width, device=CUDA)
    with NoWaiting() as watch:
        drawn = draw_members(model, diffusion, plan, image, ["a", "b"], members=2)
        if version == "v2":
            answer_in_one_pass(model, diffusion, NO_STEPS, image)
    assert watch.arrivals == gpu.waits == 0
    assert {x.device.type for x in drawn.cpu() if x is not None} == {"cpu"} and gpu.waits == 1
