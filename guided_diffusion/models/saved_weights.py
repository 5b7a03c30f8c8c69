"""The tensors in a checkpoint: plain, finite, and those of the network that the checkpoint's options name."""

import torch

from ..runtime.console import listed
from ..runtime.errors import UserError
from ..runtime.extras import MissingLibraryError
from .medsegdiff import build_model

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
PLAIN = (*FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


def named_tensors(values, *names):
    """Yield (name, tensor) of all tensors in nested dicts, lists and tuples, in order; names are joined by dots."""
    if isinstance(values, torch.Tensor):
        yield ".".join(names), values
    elif isinstance(values, (dict, list, tuple)):
        items = values.items() if isinstance(values, dict) else enumerate(values)
        for name, value in items:
            yield from named_tensors(value, *names, str(name))


def check_plain(name, tensor):
    """Raise `UserError` unless a tensor is a dense array of real numbers that lie in the file, each for itself.

    A tensor that was expanded, or has overlapping strides, claims more numbers than the file holds.
    """
    if type(tensor) is not torch.Tensor or tensor.is_nested or tensor.layout is not torch.strided or not tensor.is_cpu:
        raise UserError(f"the tensor {name} is not a dense array")
    if tensor.dtype not in PLAIN:
        raise UserError(f"the tensor {name} is of the type {tensor.dtype}, not of real numbers")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UserError(f"the tensor {name} claims the shape {list(tensor.shape)}, more than the file holds")


def check_finite(name, tensor):
    """Raise `UserError` for a tensor with NaN or infinite numbers."""
    if tensor.is_floating_point() and tensor.numel() and not torch.isfinite(tensor.sum(dtype=torch.float64)):
        raise UserError(f"the tensor {name} holds numbers that are not finite")


def network_of(options, image_channels, mask_channels, num_labels, weights):
    """The network of these options without memory for its weights, on torch's device "meta".

    weights: the saved state dict; fewer tensors than the options ask layers for show at once that they do not fit.
    Raises `UserError` for options that build no network, and `MissingLibraryError`.
    """
    if max(options.num_res_blocks, options.ss_blocks, options.anchor_levels) > len(weights):
        raise UserError("the options describe a larger network than the file holds weights for")
    try:
        with torch.device("meta"):
            return build_model(options, image_channels, mask_channels, num_labels)
    except MissingLibraryError:
        raise
    except UserError as error:
        raise UserError(f"the options build no network: {error}") from None
    except (RuntimeError, ValueError, TypeError, ArithmeticError, MemoryError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"the options build no network ({reason})") from error


def check_fits(found, wanted, what):
    """Raise `UserError` unless a state dict has the names, shapes and kinds of number of another.

    found: from a file. wanted: {name: tensor}, as of a network on "meta". what: a noun for the dict's tensors.
    """
    missing, more = [n for n in wanted if n not in found], [n for n in found if n not in wanted]
    if missing:
        raise UserError(f"lacks the {what} {listed(missing, 2)}, which its network needs")
    if more:
        raise UserError(f"holds the {what} {listed(more, 2)}, which its network does not have")
    for name, tensor in wanted.items():
        own = found[name]
        if own.shape != tensor.shape:
            raise UserError(f"the {what} {name} have the shape {list(own.shape)}, not {list(tensor.shape)}")
        if own.is_floating_point() != tensor.is_floating_point():
            raise UserError(f"the {what} {name} are of the type {own.dtype}, not {tensor.dtype}")


def check_moments(state, parameters):
    """Raise `UserError` unless an optimizer's state belongs to a network's parameters.

    state: {name or number of a parameter: {name: tensor}}. parameters: {name: tensor}, in order.
    """
    by_number = dict(enumerate(parameters))
    for key, values in state.items():
        name = by_number.get(key, key)
        if name not in parameters:
            raise UserError(f"holds the optimizer's state of {name}, which its network does not have")
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment not in values or values[moment].shape != parameters[name].shape:
                raise UserError(f"the optimizer's {moment} of {name} is missing or of another shape than the weights")
        for moment, numbers in values.items():
            if numbers.is_floating_point() and torch.isnan(numbers.sum()):
                raise UserError(f"the optimizer's {moment} of {name} holds NaN")
        if "step" not in values or values["step"].numel() != 1 or not values["step"] >= 0:
            raise UserError(f"the optimizer's step of {name} is missing or no single number from 0 up")
