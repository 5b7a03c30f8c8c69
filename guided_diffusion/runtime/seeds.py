"""Random seeds by name, so that noise depends on what it is for and on nothing that ran before."""

import hashlib

import torch


def seed_of(*parts):
    """A seed that the parts (numbers, names) decide: other parts give an unrelated one. int in [-2^63, 2^63)."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def seeded_generator(*parts):
    """A CPU generator with the seed of the parts (see `seed_of`)."""
    return torch.Generator().manual_seed(seed_of(*parts))
