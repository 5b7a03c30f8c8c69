"""Weights in shards (torch's FSDP2): each process keeps a part of every tensor, and gathers one block at a time."""

from contextlib import contextmanager

import torch
from torch.nn.modules.module import register_module_module_registration_hook
from torch.utils._pytree import tree_map

from .condition import CrossAttention, Fusion, UncertainSpatialAttention
from .unet import Downsample, ResBlock, SelfAttention, Upsample

# torch.distributed's parts take half a second to import, which runs without shards need not wait for; so that is done
# in the functions that use them.

# What is gathered whole while it computes, one at a time. The little beside them is gathered for the whole pass.
BLOCKS = (ResBlock, SelfAttention, Downsample, Upsample, Fusion, UncertainSpatialAttention, CrossAttention)


@contextmanager
def sharded_as_built(processes):
    """A context in which each block of a network is split among the processes as soon as it has been built.

    So none holds more than its shards and one block, neither in its GPU's nor in main memory, and the random start is
    that of any other run: it is drawn on the CPU, layer after layer, by every process alike.
    """
    from torch.distributed.fsdp import fully_shard

    mesh = _mesh(processes)

    def split(_parent, _name, module):
        if isinstance(module, BLOCKS):
            fully_shard(module, mesh=mesh, reshard_after_forward=True)

    handle = register_module_module_registration_hook(split)  # a block is put in its place once it is complete
    try:
        yield
    finally:
        handle.remove()


def shard_the_rest(module, processes):
    """Split what no block has, and let a forward pass of `module` gather whatever it needs. Returns `module`."""
    from torch.distributed.fsdp import fully_shard

    return fully_shard(module, mesh=_mesh(processes), reshard_after_forward=True)


def _mesh(processes):
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(processes.device.type, (processes.count,))


def whole_at_once(model):
    """How many of a network's weights are whole on a device at once: one block, the next on its way, and the rest."""
    blocks = [sum(p.numel() for p in block.parameters()) for block in model.modules() if isinstance(block, BLOCKS)]
    return sum(p.numel() for p in model.parameters()) - sum(blocks) + 2 * max(blocks)


def in_shards(value):
    """Whether it is a tensor in shards, torch's DTensor."""
    return hasattr(value, "to_local")


def local(tensor):
    """What this process has of a tensor: its shard, or all of one that is whole."""
    return tensor.to_local() if in_shards(tensor) else tensor


def laid_out(whole, like):
    """A whole tensor, which every process has, laid out in memory as `like` is and on its device; of one in shards this
    process's. It keeps its own type.

    The fused optimizer goes through the memory of weights and moments at once, whatever their strides say.
    """
    if not in_shards(like):
        return torch.empty_like(like, dtype=whole.dtype, requires_grad=False).copy_(whole)
    from torch.distributed.tensor import DTensor

    mesh = like.device_mesh
    parts = whole.chunk(mesh.size())  # along the first dimension; there may be too little for all
    rank = mesh.get_local_rank()
    own = parts[rank] if rank < len(parts) else whole[:0]
    layout = {"shape": like.shape, "stride": like.stride(), "run_check": False}
    return DTensor.from_local(own.to(like.device), mesh, like.placements, **layout)


def gathered(tree, keep):
    """Nested dicts and lists with every tensor in shards put together on the CPU; all processes call this at once.

    keep: whether this process is to have them. Otherwise None is in their place, and no more than one at a time is
    ever whole. Other tensors and values stay as they are.
    """

    def put_together(value):
        if not in_shards(value):
            return value
        whole = value.detach().full_tensor()
        return whole.cpu() if keep else None

    return tree_map(put_together, tree)


def load_whole(model, state):
    """Load a state dict of whole tensors, which every process has, into a model that may be in shards."""
    own = model.state_dict()
    model.load_state_dict(
        {name: laid_out(value, own[name]) if in_shards(own.get(name)) else value for name, value in state.items()}
    )


def whole_norm(norm):
    """A norm of tensors in shards as a plain tensor, the same in every process; a plain one is itself."""
    return norm.full_tensor() if in_shards(norm) else norm
