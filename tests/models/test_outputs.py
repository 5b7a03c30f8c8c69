"""What the variants hand on: rows of a condition, and several conditions join_conditions to one."""

import pytest
import torch

from guided_diffusion.models.outputs import ConditionV1, ConditionV2, PlainCondition, join_conditions


def condition_v2(n, offset=0):
    def part(*shape):
        return offset + torch.arange(n, dtype=torch.float32).reshape(-1, *[1] * len(shape)).expand(n, *shape)

    return ConditionV2(part(3, 8, 8), part(5, 2, 2), (part(1, 8, 8), part(1, 4, 4)), part(1, 8, 8), None)


def test_rows_may_repeat_and_reach_every_part():
    taken = condition_v2(3).rows(torch.tensor([2, 0, 0, 1]))
    assert isinstance(taken, ConditionV2) and taken.label is None
    for part in (taken.visible, taken.bottleneck, *taken.anchors, taken.coarse):
        assert part.flatten(1)[:, 0].tolist() == [2, 0, 0, 1]
    assert [tuple(anchor.shape) for anchor in taken.anchors] == [(4, 1, 8, 8), (4, 1, 4, 4)]


def test_joined_conditions_keep_their_order_and_parts():
    whole = join_conditions([condition_v2(2), condition_v2(1, offset=10)])
    assert isinstance(whole, ConditionV2) and whole.label is None
    for part in (whole.visible, whole.bottleneck, *whole.anchors, whole.coarse):
        assert part.flatten(1)[:, 0].tolist() == [0, 1, 10]


@pytest.mark.parametrize(
    "condition",
    [
        PlainCondition(torch.randn(4, 1, 8, 8)),
        ConditionV1(torch.randn(4, 3, 8, 8), torch.randn(4, 2, 8, 8), torch.randn(4, 6)),
    ],
)
def test_joining_the_rows_gives_the_whole_again(condition):
    parts = [condition.rows(torch.tensor([n])) for n in range(4)]
    for one, other in zip(join_conditions(parts), condition, strict=True):
        assert torch.equal(one, other)
