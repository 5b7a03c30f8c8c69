"""Paths in blob stores by the scripts, over a stand-in for gs:// and az://: what is fetched, pushed and never lost."""

import os
import shutil
import stat
from pathlib import Path

import processes
import pytest
from conftest import FAST, SCRIPTS, TINY, FolderStore, files, rows, strict_json, words

from guided_diffusion.checkpoint import load_checkpoint
from guided_diffusion.io.files import temporary_name
from guided_diffusion.io.storage import WorkFolder, cache_root, cached, fetch_folder, folder_digest
from guided_diffusion.runtime.errors import UserError
from guided_diffusion.training.loop import TrainLoop

RUN = "gs://bucket/runs/a"


def train_remotely(script, pictures, flags, out=RUN):
    script("segmentation_train", ["--data_name FOLDER --data_dir", pictures, "--out_dir", out, TINY, flags])


def unfinished(tmp_path):
    """The files that wait in the cache to be pushed."""
    folder = tmp_path / "cache" / "unfinished"
    return [name for name in files(folder) if not name.endswith(".pushed.jsonl")] if folder.exists() else []


def equal(one, other):
    return all((one.model[name] == other.model[name]).all() for name in one.model)


def test_a_folder_is_held_without_the_temporaries_of_killed_runs(tmp_path):
    killed, own = temporary_name(tmp_path / "metrics.csv"), tmp_path / ".notes.md"
    killed.touch()
    own.touch()
    with WorkFolder(tmp_path).held():
        assert not killed.exists() and own.exists()


# ---- training ----------------------------------------------------------------------------------------------------


def test_a_run_is_written_to_a_store_and_gone_on_with_from_there(script, refusal, pictures, blobs, tmp_path, capsys):
    train_remotely(script, pictures, "--max_steps 6 --save_interval 2", out=tmp_path / "at once")
    train_remotely(script, pictures, "--max_steps 3 --save_interval 2")
    out, there = capsys.readouterr().out, Path(blobs.local(RUN))
    assert f"step 2: wrote {RUN}/model000002.pt" in out
    assert f"--model_path {RUN}/model000003.pt" in out and f"--out_dir {RUN}/results000003" in out
    assert {"log.jsonl", "model000002.pt", "model000003.pt"} < set(files(there))
    assert any(name.startswith("tensorboard/") for name in files(there))
    assert not unfinished(tmp_path)
    line = refusal(
        "segmentation_train", ["--data_name FOLDER --data_dir", pictures, "--out_dir", RUN, TINY, "--max_steps 6"]
    )
    assert f"holds a run already ({RUN}/model000003.pt)" in line
    line = f"--resume_checkpoint {RUN}/model000003.pt --max_steps 6 --precision fp32"
    script("segmentation_train", line)  # --out_dir is as before
    assert "going on from step 3" in capsys.readouterr().out
    assert equal(load_checkpoint(there / "model000006.pt"), load_checkpoint(tmp_path / "at once" / "model000006.pt"))
    assert (there / "log.jsonl").read_text().count("\n") == 6
    line = refusal(
        "segmentation_train",
        [
            "--data_name FOLDER --data_dir",
            pictures,
            f"--out_dir {RUN} --resume_checkpoint {RUN}/model000003.pt",
            TINY,
        ],
    )
    assert f"later checkpoint ({RUN}/model000006.pt)" in line


def test_a_store_that_fails_meanwhile_is_tried_again(script, pictures, blobs, tmp_path, capsys):
    check = blobs.remove
    blobs.remove = lambda path: (check(path), setattr(blobs, "failing", 3))  # after the trial
    train_remotely(script, pictures, "--max_steps 6 --save_interval 1")
    out = capsys.readouterr().out
    assert out.count("warning: gs://bucket/runs/a/") == 3 and "the store is out of order, status 503" in out
    assert f"until then the file is in {tmp_path / 'cache'}" in out
    assert "step 1: wrote " + str(tmp_path) in out and f"step 4: wrote {RUN}/model000004.pt" in out
    assert {f"model{step:06d}.pt" for step in range(1, 7)} < set(files(Path(blobs.local(RUN))))
    assert not unfinished(tmp_path)


def test_a_store_that_always_fails_loses_nothing(script, refusal, pictures, blobs, tmp_path, capsys):
    check = blobs.remove
    blobs.remove = lambda path: (check(path), setattr(blobs, "failing", 1000))
    train = ["--data_name FOLDER --data_dir", pictures, f"--out_dir {RUN}", TINY, "--save_interval 2"]
    line = refusal("segmentation_train", [*train, "--max_steps 3"])
    assert f"error: {RUN}/" in line and "Nothing is lost" in line and str(tmp_path / "cache") in line
    kept = [name.rpartition("/")[2] for name in unfinished(tmp_path) if name.endswith(".pt")]
    assert kept == ["last.pt", "model000002.pt", "model000003.pt"]
    blobs.remove, blobs.failing = check, 0
    script("segmentation_train", [*train, "--max_steps 4 --resume_checkpoint auto"])
    assert "going on from step 3" in capsys.readouterr().out
    assert {"model000002.pt", "model000003.pt", "model000004.pt"} < set(files(Path(blobs.local(RUN))))
    assert not unfinished(tmp_path)


def test_a_complete_run_pushes_what_the_store_lacks(script, refusal, pictures, blobs, tmp_path, capsys):
    check = blobs.remove
    blobs.remove = lambda path: (check(path), setattr(blobs, "failing", 1000))
    train = ["--data_name FOLDER --data_dir", pictures, f"--out_dir {RUN}", TINY, "--max_steps 1"]
    refusal("segmentation_train", train)
    blobs.remove, blobs.failing = check, 0
    script("segmentation_train", [*train, "--resume_checkpoint auto"])
    assert "complete already (step 1 of 1)" in capsys.readouterr().out
    assert {"model000001.pt", "log.jsonl", "config.yaml"} < set(files(Path(blobs.local(RUN))))
    assert not unfinished(tmp_path)


def test_last_pt_is_pushed_late_where_the_store_has_an_older_one(script, pictures, blobs, tmp_path):
    check, there = blobs.remove, Path(blobs.local(RUN))
    train_remotely(script, pictures, "--max_steps 1")
    blobs.remove = lambda path: (check(path), setattr(blobs, "failing", 1000))
    with pytest.raises(UserError, match="Nothing is lost"):
        script("segmentation_train", f"--out_dir {RUN} --resume_checkpoint auto --max_steps 2")
    assert not (there / "model000002.pt").exists()
    blobs.remove, blobs.failing = check, 0
    script("segmentation_train", f"--out_dir {RUN} --resume_checkpoint auto --max_steps 2")
    assert (there / "last.pt").read_bytes() == (there / "model000002.pt").read_bytes()
    assert not unfinished(tmp_path)


def test_of_a_run_in_a_store_the_newest_and_the_best_are_kept(script, pictures, blobs, tmp_path):
    check = blobs.remove
    flags = "--save_interval 1 --keep_checkpoints 2 --sample_interval 1 --val_cases 1 --version unet"
    train_remotely(script, pictures, f"{flags} --max_steps 2")
    there = Path(blobs.local(RUN))
    best = load_checkpoint(there / "best.pt").validation
    blobs.remove = lambda path: (check(path), setattr(blobs, "failing", 2 * ("/.writable" in path)))  # after the trial
    script("segmentation_train", f"--out_dir {RUN} --resume_checkpoint auto --max_steps 5")
    checkpoints = {name for name in files(there) if name.endswith(".pt")}
    assert checkpoints == {"best.pt", "last.pt", "model000004.pt", "model000005.pt"}
    assert (there / "last.pt").read_bytes() == (there / "model000005.pt").read_bytes()
    newest = load_checkpoint(there / "model000005.pt").validation
    assert load_checkpoint(there / "best.pt").validation == newest and newest["dice"] >= best["dice"]
    assert {f"validation/step00000{step}.png" for step in range(1, 6)} < set(files(there))
    copied = [source for done, source in blobs.used if done == "download" and source.endswith(".pt")]
    assert set(copied) == {f"{RUN}/model000002.pt"}  # the store makes last.pt and best.pt by itself
    assert not unfinished(tmp_path)


def test_a_store_that_cannot_be_written_to_is_refused_before_the_first_step(refusal, pictures, blobs):
    blobs.failing = 1
    line = refusal("segmentation_train", ["--data_name FOLDER --data_dir", pictures, f"--out_dir {RUN}", TINY])
    assert line.startswith(f"error: {RUN}: cannot be written to (the store is out of order, status 503)")


def test_what_was_removed_in_the_store_is_not_gone_on_with(script, pictures, blobs, tmp_path, capsys, monkeypatch):
    """A run that is ended at once leaves its local copy; when its folder is removed there, the next begins anew."""
    seed_dropout = TrainLoop._seed_dropout

    def ended(loop):
        if loop.step == 2:
            raise KeyboardInterrupt
        seed_dropout(loop)

    monkeypatch.setattr(TrainLoop, "_seed_dropout", ended)
    with pytest.raises(KeyboardInterrupt):
        train_remotely(script, pictures, "--max_steps 3 --save_interval 1")
    left = [name.rpartition("/")[2] for name in unfinished(tmp_path)]
    assert "model000002.pt" in left
    shutil.rmtree(blobs.local("gs://bucket"))
    monkeypatch.setattr(TrainLoop, "_seed_dropout", seed_dropout)
    train_remotely(script, pictures, "--max_steps 1 --resume_checkpoint auto")
    assert "going on from" not in capsys.readouterr().out
    assert [name for name in files(Path(blobs.local(RUN))) if name.endswith(".pt")] == ["last.pt", "model000001.pt"]


# ---- several processes ----


def in_store(folder, name, line):
    """A script in one of several processes, with a `FolderStore` whose uploads are told."""
    import runpy

    from guided_diffusion.io import storage
    from guided_diffusion.runtime.errors import run_script

    fake = FolderStore(folder)
    storage.store = lambda: fake
    os.environ["MEDSEGDIFF_CACHE"] = str(folder.parent / "cache")
    main = runpy.run_path(str(SCRIPTS / f"{name}.py"))["main"]
    try:
        run_script(lambda: main(words(line)))
    finally:
        print("uploads:", *fake.uploads(), flush=True)


def test_of_several_processes_the_first_writes_to_the_store(script, blobs, pictures, tmp_path):
    shutil.copytree(pictures, blobs.local("az://account/data/pictures"))
    data = "--data_dir az://account/data/pictures"

    def run(name, line):
        ended = processes.finish(
            processes.start_ranks(2, in_store, blobs.folder, name, line, folder=tmp_path), tmp_path
        )
        assert ended.statuses == [0, 0], ended.outputs
        return [output.partition("uploads:")[2].split() for output in ended.outputs]

    train = f"--data_name FOLDER {data} --out_dir {RUN} {TINY} --resume_checkpoint auto --max_steps"
    script("segmentation_train", f"{train} 1")
    first, second = run("segmentation_train", f"{train} 2")
    assert f"{RUN}/model000002.pt" in first and not second
    model = f"--model_path {RUN}/model000002.pt"
    first, second = run("segmentation_sample", f"{model} {data} --out_dir gs://bucket/out {FAST} --batch_size 1")
    masks = [f"gs://bucket/out/masks/case{n}.png" for n in range(4)]
    assert [path for path in first if path in masks] == masks[::2]
    assert second and all("/case1.png" in path or "/case3.png" in path for path in second)
    there = Path(blobs.local("gs://bucket/out"))
    assert len(rows(there)) == 4 and strict_json(there / "manifest.json")["status"] == "complete"
    assert not unfinished(tmp_path)


# ---- sampling and evaluation -------------------------------------------------------------------------------------


@pytest.fixture
def remote(blobs, trained, pictures):
    """The sampling script's flags: a checkpoint and data in the store, and a results folder there."""
    shutil.copytree(pictures, blobs.local("az://account/data/pictures"))
    Path(blobs.local("gs://bucket/runs")).mkdir(parents=True)
    shutil.copy(trained, blobs.local("gs://bucket/runs/model000002.pt"))
    return (
        "--model_path gs://bucket/runs/model000002.pt --data_dir az://account/data/pictures --out_dir gs://bucket/out"
    )


def test_sampling_and_evaluation_work_in_a_store(script, sample, trained, pictures, remote, blobs, tmp_path, capsys):
    here = sample(trained, pictures, f"{FAST} --save_samples True")
    script("segmentation_sample", [remote, FAST, "--save_samples True"])
    there = Path(blobs.local("gs://bucket/out"))
    assert files(there) == files(here)
    for name in files(here / "masks") + [f"../samples/{name}" for name in files(here / "samples")]:
        assert (there / "masks" / name).read_bytes() == (here / "masks" / name).read_bytes()
    manifest = strict_json(there / "manifest.json")
    assert manifest["status"] == "complete" and manifest["checkpoint"] == "gs://bucket/runs/model000002.pt"
    assert manifest["data"]["data_dir"] == "az://account/data/pictures" and not unfinished(tmp_path)
    assert "masks: gs://bucket/out   report: gs://bucket/out/report.html" in capsys.readouterr().out
    cases = [path for path in blobs.uploads() if "case0" in path]
    assert cases[-1] == "gs://bucket/out/masks/case0.png" and len(cases) == len(set(cases)) == 7

    (there / "metrics.csv").unlink()
    script("segmentation_eval", ["--pred_dir gs://bucket/out"])
    assert "written: gs://bucket/out/metrics.csv" in capsys.readouterr().out
    assert rows(there) == rows(here)
    script("segmentation_eval", ["--pred_dir gs://bucket/out --out_dir", tmp_path / "scores"])
    assert rows(tmp_path / "scores") == rows(here) and not unfinished(tmp_path)


def test_volumes_are_pushed_whole(script, sample, train, brats, blobs, tmp_path):
    checkpoint = train("BRATS", brats)
    here = sample(checkpoint, brats, f"{FAST} --save_samples True")
    line = ["--model_path", checkpoint, "--data_dir", brats, "--out_dir gs://bucket/out", FAST, "--save_samples True"]
    script("segmentation_sample", line)
    assert files(Path(blobs.local("gs://bucket/out"))) == files(here)
    volume = [path for path in blobs.uploads() if path.endswith(".nii.gz")]
    assert volume[-1].endswith("_seg.nii.gz") and len(volume) == 6


def test_cases_finished_in_a_store_are_skipped_and_changed_data_are_fetched(script, remote, blobs, capsys):
    script("segmentation_sample", [remote, FAST, "--num_samples 2"])
    assert "0 finished already" in capsys.readouterr().out
    blobs.used.clear()
    script("segmentation_sample", [remote, FAST])
    assert "2 finished already" in capsys.readouterr().out
    assert not [path for path in blobs.uploads() if "case0" in path or "case1" in path]
    data = Path(blobs.local("az://account/data/pictures"))
    assert not [path for done, path in blobs.used if done == "download" and path.startswith("az://")]
    shutil.copy(data / "images" / "case1.png", data / "images" / "case0.png")
    (data / "images" / "case3.png").unlink()
    (data / "masks" / "case3.png").unlink()
    blobs.used.clear()
    script("segmentation_sample", [remote.replace("bucket/out", "bucket/anew"), FAST, "--num_samples 1"])
    assert "3 cases of" in capsys.readouterr().out
    fetched = [path for done, path in blobs.used if done == "download" and path.startswith("az://")]
    assert fetched == ["az://account/data/pictures/images/case0.png"]


def test_a_store_that_fails_while_sampling_gets_everything_in_the_end(script, remote, blobs, tmp_path, capsys):
    copy = blobs.copy

    def fails_for_case1(source, target, overwrite=False):
        if target.endswith("probability/case1.png") and "cannot be written" not in told():
            blobs.failing = 1
        copy(source, target, overwrite)

    def told():
        heard.append(capsys.readouterr().out)
        return "".join(heard)

    heard = []
    blobs.copy = fails_for_case1
    script("segmentation_sample", [remote, FAST])
    assert "warning: gs://bucket/out/probability/case1.png: cannot be written to (the store is out of order" in told()
    assert files(Path(blobs.local("gs://bucket/out/probability"))) == [f"case{n}.png" for n in range(4)]
    assert not unfinished(tmp_path)


# ---- training data, and mistakes ---------------------------------------------------------------------------------


def test_training_data_in_a_store(script, blobs, pictures, tmp_path, capsys):
    for part in ("Train", "Test"):
        shutil.copytree(pictures, blobs.local(f"gs://bucket/data/{part}"))
    train_remotely(script, "gs://bucket/data/Train", "--max_steps 1", out=tmp_path / "run")
    assert "--data_dir gs://bucket/data/Test" in capsys.readouterr().out
    checkpoint = tmp_path / "run" / "model000001.pt"
    assert load_checkpoint(checkpoint).config["digests"]["data_dir"] == folder_digest("gs://bucket/data/Train/")
    shutil.rmtree(tmp_path / "cache")
    resume = ["--out_dir", tmp_path / "run", TINY, "--max_steps 2 --resume_checkpoint auto"]
    script("segmentation_train", resume)
    assert "going on from step 1" in capsys.readouterr().out
    out = ["--out_dir", tmp_path / "results"]
    script("segmentation_sample", ["--model_path", checkpoint, "--data_dir gs://bucket/data/Train", *out, FAST])
    assert "4 of 4 cases were trained on" in capsys.readouterr().out


def no_home():
    raise RuntimeError("Could not determine home directory.")  # as for a user of a container without a name


def test_the_cache_is_made_for_its_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSEGDIFF_CACHE", str(tmp_path / "a" / "cache"))
    assert stat.S_IMODE(cache_root().stat().st_mode) == 0o700
    cache_root().chmod(0o750)  # as a user shares it
    assert stat.S_IMODE(cache_root().stat().st_mode) == 0o750
    monkeypatch.delenv("MEDSEGDIFF_CACHE")
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(UserError, match="no home folder is known; set the environment variable MEDSEGDIFF_CACHE"):
        cache_root()


@pytest.mark.parametrize(
    "flags, line",
    [
        ("--data_dir gs://bucket/none", "gs://bucket/none: no such folder, or it is empty"),
        ("--data_dir gs://bucket/data --resume_checkpoint gs://bucket/m.pt", "gs://bucket/m.pt: no such file"),
        ("--data_dir gs://", "--data_dir gs://: write gs://BUCKET/FOLDER"),
        ("--data_dir az://account", "--data_dir az://account: write gs://BUCKET/FOLDER or az://ACCOUNT/CONTAINER"),
        ("--data_dir gs://bucket/../x", "--data_dir gs://bucket/../x: write"),
        ("--data_name gs://bucket/my.py:Mine", "--data_name gs://bucket/my.py:Mine: must be a local path"),
    ],
)
def test_mistakes_are_told_in_one_line(refusal, blobs, tmp_path, flags, line):
    assert f"error: {line}" in refusal("segmentation_train", ["--out_dir", tmp_path / "run", TINY, flags])


@pytest.mark.parametrize("path", ["gs://bucket/../../home", "gs://..", "az://a/c/x/.."])
def test_what_a_manifest_names_does_not_lead_out_of_the_cache(path):
    """Files there that the store lacks would be removed."""
    for call in (cached, fetch_folder):
        with pytest.raises(UserError, match=f"^{path}: leads out of its bucket by .."):
            call(path)


def test_missing_credentials_are_told_with_the_remedy(refusal, blobs, pictures):
    """What blobfile says without credentials: of Azure several lines, of Google that an anonymous caller may not."""
    fails = {
        "az://account/container/run": blobs.blobfile.Error("Could not find any credentials\n\nNo Azure credentials"),
        "gs://bucket/run": blobs.blobfile.RequestFailure("unexpected status 401", "GET", 401, None, None),
    }
    for path, error in fails.items():

        def scandir(path, error=error):
            raise error

        blobs.scandir = scandir
        line = refusal("segmentation_train", ["--data_dir", pictures, "--out_dir", path, TINY])
        assert line.startswith(f"error: {path}: cannot be read from ({error.message.splitlines()[0]}")
        assert ("az login" if path.startswith("az") else "gcloud auth application-default login") in line
