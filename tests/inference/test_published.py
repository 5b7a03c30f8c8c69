"""What the published script fuses, against its rules worked out by hand."""

import torch

from guided_diffusion.inference.published import fused_by_published


def fused(sample, calibration, version, is_solver):
    shape = (1, 1, 1, 1, 4)
    masks = (torch.tensor(values).reshape(shape) for values in (sample, calibration))
    return fused_by_published(*masks, version, is_solver=is_solver).flatten()


def test_the_solvers_samples_span_0_to_1_and_are_added_to_the_calibration_output():
    sample, calibration = [-0.1, 0.0, 0.1, 0.3], [0.0, 0.9, 0.5, 0.2]
    spanned = torch.tensor([0.0, 0.25, 0.5, 1.0])
    torch.testing.assert_close(fused(sample, calibration, "v2", True), spanned)
    torch.testing.assert_close(fused(sample, calibration, "v1", True), torch.tensor([0.0, 0.9625, 0.625, 0.45]))
    assert torch.equal(fused([0.5] * 4, calibration, "v2", True), torch.full((4,), 0.5))  # no span to stretch


def test_without_the_solver_the_two_are_averaged_where_they_agree():
    agreeing, sample = [0.9, 0.9, 0.1, 0.0], [1.0, 0.4, 0.0, 0.0]
    assert fused(sample, agreeing, "v2", False).tolist() == torch.tensor(sample).tolist()
    torch.testing.assert_close(fused(sample, agreeing, "v1", False), torch.tensor([0.95, 0.65, 0.05, 0.0]))
    beyond = torch.tensor([0.95, 0.65, 0.0, 1.0])
    torch.testing.assert_close(fused([1.0, 0.4, -0.4, 1.5], [0.9, 0.9, 0.1, 0.9], "v1", False), beyond)
    assert fused([1.5, 0.4, -0.2, 0.0], agreeing, "v2", False).tolist() == torch.tensor([1.0, 0.4, 0.0, 0.0]).tolist()
    apart = [0.1, 0.2, 0.9, 0.8]  # of Dice 2 * 0.3 / 4 = 0.15
    torch.testing.assert_close(fused(sample, apart, "v1", False), torch.tensor([0.35, 0.3, 0.9, 0.8]))


def test_each_mask_of_each_image_is_judged_by_itself():
    sample = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).reshape(1, 2, 1, 1, 2)
    calibration = torch.tensor([[0.8, 0.0], [0.0, 0.8]]).reshape(1, 2, 1, 1, 2)
    found = fused_by_published(sample, calibration, "v1", is_solver=False).reshape(2, 2)
    torch.testing.assert_close(found, torch.tensor([[0.9, 0.0], [0.25, 0.8]]))


def test_values_below_0_of_masks_of_0_and_1_take_part_and_the_result_is_a_mask():
    """As in the published code, whose samples lie in [-1, 1]."""
    sample, calibration = torch.tensor([-1.0, -0.5, 0.0, 1.0]).reshape(1, 1, 1, 2, 2), torch.full((1, 1, 1, 2, 2), 0.6)
    assert fused_by_published(sample, calibration, "v2", is_solver=False).flatten().tolist() == [0, 0, 0, 1]
    scaled = fused_by_published(sample, calibration, "v2", is_solver=True).flatten()
    assert scaled.tolist() == [0, 0.25, 0.5, 1]
    mixed = fused_by_published(sample, calibration, "v1", is_solver=False).flatten()
    torch.testing.assert_close(mixed, torch.tensor([0.35, 0.475, 0.6, 0.85]))
