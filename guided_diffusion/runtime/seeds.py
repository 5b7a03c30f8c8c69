"""Random seeds derived from names, so that noise depends on its purpose and not on what ran before."""

import hashlib

import torch


def seed_of(*parts):
    """The seed of these parts (numbers, names), an int in [-2^63, 2^63); other parts give an unrelated seed."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def seeded_generator(*parts):
    """A CPU generator with the seed of these parts, see `seed_of`."""
    return torch.Generator().manual_seed(seed_of(*parts))
