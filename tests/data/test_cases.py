"""Cases: units that are scored as one, volumes that are not whole, and where a volume lies."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from guided_diffusion.data.cases import Case, Geometry, check_volumes, group_cases
from guided_diffusion.io.orientation import NO_TURN, canonical_turn, reoriented
from guided_diffusion.runtime.errors import UserError


def slice_of(volume, k):
    return Case(f"{volume}_{k}", (Path(f"{volume}.nii"),), volume=volume, slice_index=k)


def test_slices_of_a_volume_are_one_unit_in_their_order():
    cases = [slice_of("v", 1), Case("photo", (Path("p.png"),)), slice_of("w", 0), slice_of("v", 0)]
    units = group_cases(cases)
    assert [(unit.name, unit.indices, unit.is_volume) for unit in units] == [
        ("v", (3, 0), True),
        ("photo", (1,), False),
        ("w", (2,), True),
    ]
    assert [case.slice_index for case in units[0].cases] == [0, 1]


def test_a_picture_and_a_volume_of_one_name_are_two_units():
    assert len(group_cases([Case("v", (Path("v.png"),)), slice_of("v", 0)])) == 2


def data_set(depth):
    geometry = None if depth is None else Geometry(np.eye(4), (1, 1, 1), (4, 4, depth))
    return SimpleNamespace(load_geometry=lambda case: geometry, volumes=None)


def test_a_volume_that_is_not_whole_is_refused():
    units = group_cases([slice_of("v", k) for k in (0, 1, 3)])
    with pytest.raises(UserError, match=r"v.nii: the volume v has 4 slices, .* 3 \(slice_index 0, 1, 3\)"):
        check_volumes(data_set(4), units)
    with pytest.raises(UserError, match="v.nii: the volume v has 3 slices"):  # the gap shows without a geometry too
        check_volumes(data_set(None), units)
    check_volumes(data_set(3), group_cases([slice_of("v", k) for k in range(3)]))


def test_without_a_geometry_a_volume_is_not_written():
    units = group_cases([slice_of("v", k) for k in range(3)])
    check_volumes(data_set(None), units)
    with pytest.raises(UserError, match=r"gives no geometry of the volume v, .* define geometry\(case\)"):
        check_volumes(data_set(None), units, to_write=True)


def test_a_turned_volume_goes_back_as_its_file_holds_it():
    stored, affine = np.arange(24).reshape(2, 3, 4), np.diag([-1.0, 2.0, 3.0, 1.0])
    turn = canonical_turn(affine, stored.shape)
    turned = Geometry(np.eye(4), (1, 2, 3), stored.shape, affine, turn)
    back, written = turned.as_in_file(reoriented(stored, turn))
    assert np.array_equal(back, stored) and np.array_equal(written, affine)
    assert np.array_equal(turned.in_file[0], affine) and np.array_equal(turned.in_file[1], turn)
    still = Geometry(affine, (1, 2, 3), stored.shape)
    assert np.array_equal(still.as_in_file(stored)[0], stored) and np.array_equal(still.in_file[1], NO_TURN)
