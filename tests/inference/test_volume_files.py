"""The files of a volume, slice by slice: the values of the whole arrays, in whatever order the file has its axes."""

import nibabel
import numpy as np
import pytest
from helpers import manifest_with, maps_of, temporaries, write_volume

from guided_diffusion.data.cases import Geometry
from guided_diffusion.data.classes import Classes
from guided_diffusion.inference.results import ResultsFolder
from guided_diffusion.inference.volume_files import VolumeFiles
from guided_diffusion.io.orientation import reoriented_back
from guided_diffusion.runtime.errors import UserError

SHAPE = (5, 6, 4)
TURNS = {
    "as it is": None,
    "slices in order": [[1, -1], [0, 1], [2, 1]],
    "slices in reverse": [[0, 1], [1, 1], [2, -1]],
    "slices along another axis": [[2, 1], [0, -1], [1, 1]],
}


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS.keys())
@pytest.mark.parametrize("classes", [1, 2])
def test_files_hold_the_whole_arrays(tmp_path, turn, classes):
    turn = None if turn is None else np.array(turn, float)
    geometry = Geometry(np.eye(4), (1.0,) * 3, SHAPE, np.eye(4), turn)
    kinds = Classes(("a", "b"), ((1,), (2,))) if classes == 2 else Classes(("a",))
    maps = maps_of(SHAPE, classes=classes)
    maps.pixel_maps["entropy"] = maps.probability**2
    folder = ResultsFolder(tmp_path, manifest_with(), save_samples=True, classes=kinds)
    write_volume(folder, "v", maps, geometry, lambda k: np.zeros((1, *SHAPE[:2])))

    def expected(values):
        return values if turn is None else reoriented_back(values, turn)

    def read(name):
        image = nibabel.load(tmp_path / f"v_{name}.nii.gz")
        return np.asanyarray(image.dataobj), image.get_data_dtype()

    for what, values in (("prob", maps.probability), ("uncertainty", maps.uncertainty), ("coarse", maps.coarse)):
        for k, part in enumerate([""] if classes == 1 else ["_a", "_b"]):
            found, kind = read(what + part)
            assert kind == np.float32 and np.array_equal(found, expected(values[k]))
    assert np.array_equal(read("entropy" + ("_b" if classes == 2 else ""))[0], expected(maps.pixel_maps["entropy"][-1]))
    for name, masks in (("seg", maps.mask), ("sample_00", maps.members[0]), ("sample_01", maps.members[1])):
        found, kind = read(name)
        assert kind == np.uint8 and np.array_equal(found, expected(kinds.labels_of(masks)))


def test_only_the_masks_are_kept_as_an_array(tmp_path):
    files = VolumeFiles(ResultsFolder(tmp_path, manifest_with()), "v", Geometry(np.eye(4), (1.0,) * 3, SHAPE), 4)
    maps = maps_of(SHAPE)
    files.add(maps.map_arrays(lambda values: values[..., 0]))
    arrays = [value for value in vars(files).values() if isinstance(value, np.ndarray)]
    assert [array.shape for array in arrays] == [(4, 1, 5, 6)]
    assert not any(isinstance(content, (list, np.ndarray)) for content in files._files.values())
    with pytest.raises(UserError, match="v: its slice 1 has 6x5 pixels, the first 5x6; they must agree"):
        files.add(maps.map_arrays(lambda values: values[..., 0].swapaxes(-1, -2)))
    files.close()
    assert not temporaries(tmp_path)
