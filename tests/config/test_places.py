"""Folders leave a checkpoint's options, and come back where they are known."""

from guided_diffusion.config.places import folders_around, with_folders, without_folders


def config_of(tmp_path):
    data = {"data_name": f"{tmp_path}/secret/mine.py:Polyps", "data_dir": f"{tmp_path}/data", "cache_dir": "auto"}
    train = {"out_dir": f"{tmp_path}/run", "val_dir": f"{tmp_path}/val", "resume_checkpoint": f"{tmp_path}/x.pt"}
    return {"data": data, "train": train | {"lr": 0.1}, "model": {"version": "v2"}}


def test_no_folder_stays_and_each_comes_back_from_its_record(tmp_path):
    config = config_of(tmp_path)
    bare = without_folders(config)
    assert str(tmp_path) not in repr(bare) and bare["train"] == {"lr": 0.1}
    assert bare["data"] == {"data_name": "mine.py:Polyps", "cache_dir": "auto"}
    assert without_folders(bare) == bare  # as --fit_temperature writes a checkpoint again
    known = with_folders(bare, config["data"] | config["train"])
    assert known["data"] == config["data"] and known["train"] == {"lr": 0.1, "val_dir": f"{tmp_path}/val"}
    assert without_folders(known) == bare


def test_another_run_s_record_names_nothing(tmp_path):
    bare = without_folders(config_of(tmp_path))
    other = {"data_dir": "/elsewhere", "val_dir": ["odd"], "data_name": "their.py:Polyps", "cache_dir": 3}
    for record in (other, {}):
        known = with_folders(bare, record)
        assert known["data"] == {"data_name": "mine.py:Polyps", "cache_dir": "auto", "data_dir": ""}
        assert known["train"] == {"lr": 0.1, "val_dir": ""}


def test_a_folder_is_known_from_the_one_above_or_below(tmp_path):
    bare = without_folders(config_of(tmp_path))
    (tmp_path / "data" / "Test").mkdir(parents=True)
    for asked in (tmp_path, tmp_path / "data", tmp_path / "data" / "Test", tmp_path / "data" / "absent"):
        assert with_folders(bare, {}, folders_around(asked))["data"]["data_dir"] == str(tmp_path / "data")
    assert not with_folders(bare, {}, folders_around(tmp_path / "val"))["data"]["data_dir"]


def test_an_older_checkpoint_and_a_remote_folder_keep_theirs(tmp_path):
    config = config_of(tmp_path)
    assert with_folders(config, {"data_dir": "/elsewhere"}) == config
    remote = config | {"data": {"data_name": "ISIC", "data_dir": "gs://bucket/data/"}}
    known = with_folders(without_folders(remote), {}, folders_around("gs://bucket/data"))
    assert known["data"]["data_dir"] == "gs://bucket/data"
