"""STAPLE against SimpleITK, and the other ways to fuse an ensemble against hand-worked cases."""

import dataclasses
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from guided_diffusion.config.sample_options import SampleOptions
from guided_diffusion.inference.ensemble import (
    FUSE_METHODS,
    fuse,
    mean_consensus,
    pairwise_dice,
    staple,
    uncertainty,
    vote,
    vote_patterns,
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def smooth_noise(rng, sigma, size):
    noise = gaussian_filter(rng.standard_normal((size, size)), sigma)
    return noise / noise.std()


def blobs(seed, members, size=48):
    """Members [E, H, W] who agree on where the blobs are, but not on their borders nor on how large they are."""
    rng = np.random.default_rng(seed)
    truth = smooth_noise(rng, 6, size)
    bias = rng.uniform(0.6, 1.2, members)
    return np.stack([truth + 0.5 * smooth_noise(rng, 3, size) > level for level in bias])


def as_batch(members):
    """[E, H, W] -> tensor [E, 1, 1, H, W]."""
    return torch.from_numpy(np.asarray(members))[:, None, None]


def blob_batch(members=5, images=4, classes=2):
    """bool [E, N, K, H, W]."""
    items = [torch.from_numpy(blobs(seed, members)) for seed in range(images * classes)]
    return torch.stack(items, dim=1).unflatten(1, (images, classes))


def soft_batch(members=5, images=2, classes=2, size=32):
    return torch.rand((members, images, classes, size, size), generator=torch.Generator().manual_seed(0))


def itk_staple(members):
    """SimpleITK's STAPLE with its defaults: consensus [H, W], sensitivity [E], specificity [E], iterations done."""
    sitk = pytest.importorskip("SimpleITK")
    staple_filter = sitk.STAPLEImageFilter()
    staple_filter.SetForegroundValue(1)
    consensus = staple_filter.Execute([sitk.GetImageFromArray(member.astype(np.uint8)) for member in members])
    return (
        sitk.GetArrayFromImage(consensus),
        np.array(staple_filter.GetSensitivity()),
        np.array(staple_filter.GetSpecificity()),
        staple_filter.GetElapsedIterations() + 1,  # it does not count the one after which it finds convergence
    )


# ---- STAPLE against SimpleITK -----------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [2, 3, 5, 8])
@pytest.mark.parametrize("seed", range(5))
def test_staple_agrees_with_simpleitk(members, seed):
    votes = blobs(seed, members)
    consensus, sensitivity, specificity, _ = itk_staple(votes)
    result = staple(as_batch(votes))
    np.testing.assert_allclose(result.consensus[0, 0], consensus, atol=1e-4, rtol=0)
    np.testing.assert_allclose(result.sensitivity[:, 0, 0], sensitivity, atol=1e-4, rtol=0)
    np.testing.assert_allclose(result.specificity[:, 0, 0], specificity, atol=1e-4, rtol=0)


@pytest.mark.parametrize("members", [3, 25])
def test_every_iteration_is_simpleitks(members):
    """Stopped at the iteration where SimpleITK stops, the posterior is the same but for rounding."""
    votes = np.random.default_rng(members).random((members, 16, 16)) < 0.3  # hardly any agreement, so slow
    consensus, sensitivity, _, iterations = itk_staple(votes)
    result = staple(as_batch(votes), max_iterations=iterations, tolerance=0)
    assert result.iterations.item() == iterations > 5
    np.testing.assert_allclose(result.consensus[0, 0], consensus, atol=1e-8)
    np.testing.assert_allclose(result.sensitivity[:, 0, 0], sensitivity, atol=1e-8)


@pytest.mark.parametrize("broken", [np.zeros((48, 48), bool), np.ones((48, 48), bool)])
def test_one_degenerate_member_among_others(broken):
    votes = np.concatenate([blobs(0, 4), broken[None]])
    result = staple(as_batch(votes))
    assert all(torch.isfinite(field).all() for field in result)
    np.testing.assert_allclose(result.consensus[0, 0], itk_staple(votes)[0], atol=1e-4)
    assert result.sensitivity[4].item() == pytest.approx(float(broken.any()))
    assert result.specificity[4].item() == pytest.approx(float(not broken.any()))


# ---- STAPLE's properties ----------------------------------------------------------------------------------------


def test_staple_recovers_known_raters():
    """Members that err at random with known rates get those rates back, and the truth is found."""
    rng = np.random.default_rng(0)
    truth = rng.random((128, 128)) < 0.3
    sensitivity, specificity = np.array([0.95, 0.9, 0.8, 0.7, 0.9]), np.array([0.9, 0.95, 0.9, 0.95, 0.8])
    draw = rng.random((5, 128, 128))
    votes = np.where(truth, draw < sensitivity[:, None, None], draw > specificity[:, None, None])
    result = staple(as_batch(votes))
    np.testing.assert_allclose(result.sensitivity.flatten(), sensitivity, atol=0.05)
    np.testing.assert_allclose(result.specificity.flatten(), specificity, atol=0.05)
    wrong = (result.consensus[0, 0].numpy() > 0.5) != truth
    assert wrong.mean() < (votes != truth).mean(axis=(1, 2)).min() / 2


def test_a_good_member_outvotes_several_poor_ones():
    rng = np.random.default_rng(1)
    truth = np.zeros((64, 64), bool)
    truth[16:48, 16:48] = True
    poor = [truth ^ (rng.random(truth.shape) < 0.3) for _ in range(4)]
    votes = np.stack([truth ^ (rng.random(truth.shape) < 0.01), *poor])
    mask = staple(as_batch(votes)).consensus[0, 0].numpy() > 0.5
    majority = votes.mean(axis=0) > 0.5
    assert (mask != truth).mean() < 0.03 < (majority != truth).mean()


def test_three_of_five_equally_good_members_are_foreground():
    """The fault of the squared mean: 3 of 5 gave 0.36 there, which the cut at 0.5 made background."""
    columns = [[1] * 5] * 100 + [[0] * 5] * 100  # agreement, and each way in which 3 or 2 of 5 may say foreground
    columns += [[int(j in chosen) for j in range(5)] for size in (2, 3) for chosen in combinations(range(5), size)]
    votes = torch.tensor(columns, dtype=torch.float32).T.reshape(5, 1, 1, 1, -1)  # [E, 1, 1, 1, pixels]
    three_or_more = votes.sum(dim=0) >= 3
    for method in FUSE_METHODS:
        assert torch.equal(fuse(votes, method) > 0.5, three_or_more), method
    assert fuse(votes, "vote")[0, 0, 0, -1].item() == pytest.approx(0.6)  # not its square


def test_an_image_does_not_depend_on_its_batch():
    votes = blob_batch()
    votes[:, 1, 0] = False  # bypassed, and noise that converges slowly, in the same batch as ordinary images
    votes[:, 2, 1] = torch.rand(votes[:, 2, 1].shape, generator=torch.Generator().manual_seed(0)) < 0.3
    together = staple(votes)
    assert len(together.iterations.unique()) > 3
    for image in range(votes.shape[1]):
        alone = staple(votes[:, image : image + 1])
        assert torch.equal(alone.consensus[0], together.consensus[image])
        assert torch.equal(alone.iterations[0], together.iterations[image])
        for field in ("sensitivity", "specificity"):
            one, many = getattr(alone, field)[:, 0], getattr(together, field)[:, image]
            assert torch.equal(one.nan_to_num(-1), many.nan_to_num(-1))


def test_classes_and_images_keep_their_places():
    votes = blob_batch(members=3, images=2, classes=3)
    result = staple(votes)
    assert result.consensus.shape == (2, 3, 48, 48)
    assert result.sensitivity.shape == result.specificity.shape == (3, 2, 3)
    for image in range(2):
        for cls in range(3):
            consensus, sensitivity, _, _ = itk_staple(votes[:, image, cls].numpy())
            np.testing.assert_allclose(result.consensus[image, cls], consensus, atol=1e-4)
            np.testing.assert_allclose(result.sensitivity[:, image, cls], sensitivity, atol=1e-4)


def test_all_empty_and_all_full_bypass_em():
    votes = blob_batch(members=3, images=3, classes=1)
    votes[:, 0], votes[:, 1] = False, True
    result = staple(votes)
    assert (result.consensus[0] == 0).all() and (result.consensus[1] == 1).all()
    assert result.sensitivity[:, 0].isnan().all() and (result.specificity[:, 0] == 1).all()
    assert (result.sensitivity[:, 1] == 1).all() and result.specificity[:, 1].isnan().all()
    assert result.iterations.flatten().tolist()[:2] == [0, 0] and result.iterations[2] > 0
    assert all(torch.isfinite(field[..., 2, :]).all() for field in (result.sensitivity, result.specificity))


def test_no_nan_on_hard_ensembles():
    """Single pixels, disjoint, nested, complementary and near-full members, and many members."""
    point, square = torch.zeros(32, 32, dtype=torch.bool), torch.zeros(32, 32, dtype=torch.bool)
    point[3, 3] = True
    square[8:24, 8:24] = True
    nothing = torch.zeros_like(point)
    ensembles = [(point, nothing), (point, square), (square, ~square), (square, square | point), (~point, ~nothing)]
    ensembles += [tuple(torch.rand(40, 32, 32, generator=torch.Generator().manual_seed(0)) < p) for p in (0.01, 0.99)]
    ensembles += [(square,) * 69 + (point,)]  # more members than bits in an integer
    for members in ensembles:
        result = staple(torch.stack(members)[:, None, None])
        assert all(torch.isfinite(field).all() for field in result)
        assert 0 <= result.consensus.min() and result.consensus.max() <= 1


def test_more_members_than_bits_in_an_integer():
    """The pixels' votes are numbered bit by bit; members beyond the 64th must count like the first."""
    votes = as_batch(np.concatenate([blobs(0, 1)] * 67 + [blobs(1, 3)]))
    once, turned = staple(votes), staple(votes.flip(0))
    for field, same in zip(once[:3], (turned[0], turned[1].flip(0), turned[2].flip(0)), strict=True):
        torch.testing.assert_close(field, same, atol=1e-9, rtol=0)
    assert (once.sensitivity[:67] == once.sensitivity[0]).all()
    assert once.sensitivity[67:].max() < 0.9 < once.sensitivity[0].item()


def test_em_has_converged():
    votes = blob_batch()
    torch.testing.assert_close(
        staple(votes).consensus, staple(votes, max_iterations=2000, tolerance=0).consensus, atol=1e-7, rtol=0
    )


def test_a_run_that_is_cut_short_says_so():
    votes = as_batch(blobs(0, 5))
    assert staple(votes, max_iterations=3).iterations.item() == 3
    assert 3 < staple(votes).iterations.item() < 1000


@pytest.mark.parametrize("device", DEVICES)
def test_the_result_is_on_the_device_and_the_same_everywhere(device):
    votes, soft = blob_batch(), soft_batch()
    for here, there in zip(staple(votes), staple(votes.to(device)), strict=True):
        assert there.device.type == device and torch.equal(here, there.cpu())
    for method in FUSE_METHODS:
        torch.testing.assert_close(fuse(soft.to(device), method).cpu(), fuse(soft, method))
    torch.testing.assert_close(uncertainty(soft.to(device)).cpu(), uncertainty(soft))
    torch.testing.assert_close(pairwise_dice(votes.to(device)).cpu(), pairwise_dice(votes))


def test_votes_may_be_numbers_but_not_soft():
    votes = blob_batch()
    assert torch.equal(staple(votes.float()).consensus, staple(votes).consensus)
    assert torch.equal(vote(votes.to(torch.uint8)), vote(votes))
    for function in (staple, vote, pairwise_dice):
        with pytest.raises(ValueError, match="0 or 1"):
            function(soft_batch())


# ---- fusing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", FUSE_METHODS)
@pytest.mark.parametrize("members", [1, 3, 5])
def test_identical_members_give_the_member(method, members):
    member = soft_batch(members=1)
    fused = fuse(member.expand(members, -1, -1, -1, -1), method)
    expected = member[0] if method == "mean" else (member[0] > 0.5).float()
    torch.testing.assert_close(fused, expected, atol=0, rtol=0)
    assert torch.equal(fused > 0.5, member[0] > 0.5)


@pytest.mark.parametrize("method", FUSE_METHODS)
def test_the_order_of_members_does_not_matter(method):
    soft = soft_batch()
    torch.testing.assert_close(fuse(soft[[3, 0, 4, 2, 1]], method), fuse(soft, method), atol=1e-6, rtol=0)
    assert torch.equal(fuse(soft[[3, 0, 4, 2, 1]], method) > 0.5, fuse(soft, method) > 0.5)


@pytest.mark.parametrize("method", FUSE_METHODS)
def test_fuse_is_a_soft_mask(method):
    fused = fuse(soft_batch().half(), method)
    assert fused.shape == (2, 2, 32, 32) and fused.dtype == torch.float32
    assert torch.isfinite(fused).all() and 0 <= fused.min() and fused.max() <= 1


def test_fuse_by_hand():
    soft = torch.tensor([[0.5, 0.9, 0.6], [0.5, 0.6, 0.6], [0.51, 0.3, 0.6], [0.5, 0.0, 0.6]]).reshape(4, 1, 1, 1, 3)
    # A member at exactly 0.5 is background, and so is a tie of members.
    assert fuse(soft, "vote").flatten().tolist() == [0.25, 0.5, 1.0]
    assert (fuse(soft, "vote") > 0.5).flatten().tolist() == [False, False, True]
    assert fuse(soft, "mean").flatten().tolist() == pytest.approx([0.5025, 0.45, 0.6])
    assert torch.equal(fuse(soft, "staple"), staple(soft > 0.5).consensus.float())
    assert torch.equal(mean_consensus(soft), fuse(soft, "mean"))


def test_the_flag_offers_every_method():
    choices = next(f for f in dataclasses.fields(SampleOptions) if f.name == "fuse").metadata["choices"]
    assert set(choices) == {"auto", *FUSE_METHODS}


def test_unknown_method_names_the_choices():
    with pytest.raises(ValueError, match="'STAPLES'.*staple, mean, vote"):
        fuse(soft_batch(), "STAPLES")


@pytest.mark.parametrize("function", [mean_consensus, uncertainty, lambda soft: fuse(soft, "staple")])
def test_values_that_are_no_probabilities_are_refused(function):
    for bad in (soft_batch() * 2 - 1, soft_batch() * 2, soft_batch() * torch.nan):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            function(bad)


@pytest.mark.parametrize("function", [mean_consensus, uncertainty, staple, vote, pairwise_dice])
@pytest.mark.parametrize("shape", [(5, 1, 8, 8), (0, 1, 1, 8, 8)])
def test_wrong_shapes_are_refused(function, shape):
    with pytest.raises(ValueError, match=r"\[E, N, K, H, W\]"):
        function(torch.zeros(shape))


# ---- disagreement -----------------------------------------------------------------------------------------------


def test_uncertainty_is_the_population_deviation():
    soft = soft_batch()
    np.testing.assert_allclose(uncertainty(soft), soft.numpy().std(axis=0), atol=1e-6)
    assert (uncertainty(soft[:1].expand(3, -1, -1, -1, -1)) == 0).all()
    alone = soft[:1].clone().clamp(0, 1)
    torch.testing.assert_close(uncertainty(alone), (alone * (1 - alone)).sqrt()[0])  # of a mask drawn from it
    opposed = torch.stack([torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)])
    assert (uncertainty(opposed) == 0.5).all()


def test_pairwise_dice_by_hand():
    votes = torch.zeros(3, 1, 3, 1, 4)
    votes[0, 0, 0, 0, :2] = votes[1, 0, 0, 0, 1:3] = votes[2, 0, 0, 0, 3:] = 1  # dice 1/2, 0, 0
    votes[0, 0, 1, 0, :2] = 1  # one member against two empty ones: 0, 0 and 1; the third class is empty for all
    assert pairwise_dice(votes).flatten().tolist() == pytest.approx([1 / 6, 1 / 3, 1.0])


def test_pairwise_dice_of_blobs():
    votes = blob_batch()
    expected = [
        2 * (one & other).sum((-1, -2)) / (one.sum((-1, -2)) + other.sum((-1, -2)))
        for one, other in combinations(votes, 2)
    ]
    torch.testing.assert_close(pairwise_dice(votes), torch.stack(expected).mean(dim=0))
    assert pairwise_dice(votes[:1]).isnan().all()
    assert (pairwise_dice(votes[:1].expand(3, -1, -1, -1, -1)) == 1).all()


def test_votes_are_numbered_alike_by_counting_and_by_sorting():
    votes = torch.from_numpy(np.random.default_rng(0).random((3, 2, 500)) < 0.3)
    counted = vote_patterns(votes)
    sorted_ = vote_patterns(votes[:, :, :6])  # fewer pixels than codes
    assert torch.equal(counted[1][counted[3]].permute(2, 0, 1), votes)
    assert torch.equal(sorted_[1][sorted_[3]].permute(2, 0, 1), votes[:, :, :6])
    for item, _, count, row in (counted, sorted_):
        assert (item.diff() >= 0).all() and torch.equal(count, row.flatten().bincount())


def test_one_member_is_its_own_consensus():
    soft = torch.rand(1, 2, 1, 4, 4)
    assert torch.equal(fuse(soft, "staple"), staple(soft > 0.5).consensus.float())
