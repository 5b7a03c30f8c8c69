"""Seeds by name."""

import torch

from guided_diffusion.runtime.seeds import seed_of, seeded_generator


def test_seeds_by_name_are_repeatable_and_unrelated():
    first = torch.randn(4, generator=seeded_generator("case", 1, 23))
    assert torch.equal(first, torch.randn(4, generator=seeded_generator("case", 1, 23)))
    seeds = {seed_of("case", 1, 23), seed_of("case", 12, 3), seed_of("case1", 23), seed_of("case", 1, 24), seed_of()}
    assert len(seeds) == 5 and all(-(2**63) <= seed < 2**63 for seed in seeds)
