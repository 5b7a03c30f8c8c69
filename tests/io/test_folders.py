"""Walks that end whatever links lead where, and entries of lists that lead out of a folder."""

import os

import pytest

from guided_diffusion.io.folders import atomic_folder, check_listed, is_inside, walk_folders
from guided_diffusion.runtime.errors import UserError


def paths(root, **options):
    return [folder.below for folder in walk_folders(root, **options)]


def test_parents_come_first_and_the_depth_ends_a_walk(tmp_path):
    (tmp_path / "b" / "c" / "d").mkdir(parents=True)
    (tmp_path / "a").mkdir()
    (tmp_path / "b" / "file").touch()
    assert paths(tmp_path) == ["", "a", "b", "b/c", "b/c/d"]
    assert paths(tmp_path, depth=1) == ["", "a", "b"] and paths(tmp_path, depth=0) == [""]
    found = {folder.below: [entry.name for entry in folder.entries] for folder in walk_folders(tmp_path)}
    assert found["b"] == ["c", "file"]


def test_the_caller_chooses_what_is_entered(tmp_path):
    (tmp_path / "a" / "x").mkdir(parents=True)
    (tmp_path / "b" / "x").mkdir(parents=True)
    seen = []
    for folder in walk_folders(tmp_path):
        seen.append(folder.below)
        folder.enter = [entry for entry in folder.enter if entry.name != "a"]
    assert seen == ["", "b", "b/x"]


def test_a_link_is_followed_but_not_to_what_holds_it(tmp_path):
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "shared" / "b").mkdir(parents=True)
    for name, target in (("self", "."), ("up", ".."), ("root", "/"), ("shared", "../shared")):
        (tmp_path / "data" / name).symlink_to(target)
    (tmp_path / "shared" / "back").symlink_to("../data")
    (tmp_path / "shared" / "b" / "again").symlink_to("..")
    assert paths(tmp_path / "data") == ["", "a", "shared", "shared/b"]
    assert next(f.real for f in walk_folders(tmp_path / "data") if f.below == "shared/b") == f"{tmp_path}/shared/b"


def test_folders_that_link_to_each_other_do_not_multiply(tmp_path):
    """20 folders with links to one another have more paths than a walk could end."""
    for one in range(20):
        (tmp_path / f"f{one}").mkdir()
        for other in range(20):
            (tmp_path / f"f{one}" / f"to{other}").symlink_to(f"../f{other}")
    assert len(paths(tmp_path)) <= 1 + 20 + 20 * 20 + 20
    assert paths(tmp_path, once=True) == ["", *sorted(f"f{one}" for one in range(20))]
    assert paths(tmp_path / "f0", once=True) == ["", *sorted(f"to{one}" for one in range(1, 20))]


def test_two_links_to_one_folder_have_its_files_each(tmp_path):
    """As splits that are made of links: train/P1 and all/P1."""
    (tmp_path / "all" / "p1").mkdir(parents=True)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "p1").symlink_to("../all/p1")
    assert paths(tmp_path) == ["", "all", "all/p1", "train", "train/p1"]
    assert paths(tmp_path, once=True) == ["", "all", "all/p1", "train"]
    (tmp_path / "again").symlink_to("all")
    assert paths(tmp_path, once=True) == ["", "all", "all/p1", "train"]  # not by the link, though it comes first


def test_a_folder_that_cannot_be_opened_is_closed(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    scan = os.scandir

    def scandir(path):
        if str(path).endswith(("a", "b")):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert [(folder.below, folder.closed) for folder in walk_folders(tmp_path)] == [
        ("", False),
        ("a", True),
        ("b", True),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "../secret.png",
        "a/../../secret",
        "/etc/passwd",
        "..\\..\\secret",
        "C:\\secret.png",
        "c:/x",
        "gs://b/x.png",
        "file:///x",
    ]
    + ["/proc/self/cwd/../x", "a\0b", "..", "\\\\host\\x", "../data2/x.png"],
)
def test_an_entry_that_leads_out_of_the_folder_is_refused(tmp_path, text):
    with pytest.raises(UserError) as caught:
        check_listed(tmp_path / "data" / "list.json", text, tmp_path / "data")
    assert str(caught.value).startswith(f"{tmp_path}/data/list.json: names ") and str(caught.value).isprintable()
    assert "which is not below --data_dir; put the file, or a link to it, there" in str(caught.value)


def test_an_entry_below_the_folder_is_taken(tmp_path):
    folder = tmp_path / "data"
    for text in ("x.png", "./a/x.png", "a/../b", "a..b", "...", "a\\b", f"{folder}/x", "", "ISIC_01,x", "P1:2", "~/x"):
        check_listed(folder / "list.json", text, folder)
    check_listed(folder / "below" / "list.json", "../x.png", folder)
    assert is_inside("/a", "/a") and is_inside("/a/b", "/a") and is_inside("/a", "/") and not is_inside("/ab", "/a")


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_there_when_all_its_files_are(tmp_path):
    target = tmp_path / "new" / "model.v2"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("a")
        assert not target.exists() and folder.parent == target.parent and folder.name.startswith(".")
    assert [path.name for path in target.iterdir()] == ["a"] and list(target.parent.iterdir()) == [target]
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "other"):
        raise ZeroDivisionError
    assert {path.name for path in tmp_path.iterdir()} == {"new"}


def test_what_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "empty").mkdir()
    with atomic_folder(tmp_path / "empty") as folder:
        (folder / "a").write_text("a")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    for name in ("empty", "link", "file"):
        with pytest.raises(UserError, match="is there already, and is no empty folder"), atomic_folder(tmp_path / name):
            raise AssertionError("the context began")
    assert (tmp_path / "empty" / "a").read_text() == "a" and (tmp_path / "file").read_text() == "mine"


def test_the_folder_of_a_killed_run_goes_and_one_at_work_stays(tmp_path):
    old, young, other = (tmp_path / f".{name}" for name in (f"m.{'1' * 20}", f"m.{'2' * 20}", "m.notes"))
    for path in (old, young, other):
        path.mkdir()
    os.utime(old, (1, 1))
    os.utime(other, (1, 1))
    with atomic_folder(tmp_path / "m"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {young.name, other.name, "m"}
