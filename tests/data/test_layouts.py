"""Folders as archives leave them."""

import pytest

from guided_diffusion.data.layouts import files_of, folders_below, innermost, named_file, unpacked


@pytest.fixture
def tree(tmp_path):
    """A function (path, ...) that makes empty files below tmp_path and returns it."""

    def make(*paths):
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
        return tmp_path

    return make


def walked(root):
    return {str(folder.relative_to(root)): list(files) for folder, files in folders_below(root)}


def test_folders_that_stand_for_files_are_files(tree):
    root = tree("A/t1.nii/x.nii", "A/t2.nii.gz/.hidden.nii", "A/t2.nii.gz/y.NII", "A/b.nii.txt/z.nii", "A/.x", "c.nii")
    assert walked(root) == {".": ["c.nii"], "A": ["t1.nii", "t2.nii.gz"], "A/b.nii.txt": ["z.nii"]}
    assert named_file(root / "A/t1.nii/x.nii") == root / "A/t1.nii" and named_file(root / "c.nii") == root / "c.nii"
    assert files_of(root / "A", (".nii",)) == {"t1.nii": root / "A/t1.nii/x.nii"}
    assert files_of(root / "none", (".nii",)) == {}


def test_a_folder_of_several_files_stands_for_none(tree):
    root = tree("a.nii/x.nii", "a.nii/y.nii", "b.nii/notes.txt")
    assert unpacked(root / "a.nii") is unpacked(root / "b.nii") is None
    assert walked(root) == {".": [], "a.nii": ["x.nii", "y.nii"], "b.nii": ["notes.txt"]}


def test_links_are_followed_but_never_upwards(tree):
    root = tree("A/x.nii", "B/C/y.nii")
    (root / "A" / "up").symlink_to(root)
    (root / "A" / "self").symlink_to(root / "A")
    (root / "A" / "beside").symlink_to(root / "B")
    assert walked(root) == {".": [], "A": ["x.nii"], "A/beside": [], "A/beside/C": ["y.nii"], "B": [], "B/C": ["y.nii"]}


def test_folders_of_the_same_name_in_each_other(tree):
    root = tree("D (1)/D/d/a.png", "D (1)/__MACOSX/D/._a.png", "E/a.txt", "F/x/a.png", "G/G/a.png", "G/b.png")
    assert innermost(root / "D (1)", (".png",)) == root / "D (1)/D/d"
    for name in "EFG":
        assert innermost(root / name, (".png",)) == root / name
    (root / "E" / "E").symlink_to(root / "E")
    assert innermost(root / "E", (".png",)) == root / "E"
    assert innermost(root / "none", (".png",)) == root / "none"
