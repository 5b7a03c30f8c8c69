"""--classes through the scripts: what each kind of data makes of it, trained, sampled, written back and scored."""

import shutil

import nibabel
import numpy as np
import pytest
from conftest import FAST, TINY, rows, strict_json
from PIL import Image

from guided_diffusion import Segmenter
from guided_diffusion.checkpoint import load_checkpoint, save_checkpoint
from guided_diffusion.data import phantoms as phantom
from guided_diffusion.data.classes import parse_classes
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.data.truth import raters_of, truths_of
from guided_diffusion.runtime.errors import UserError

TISSUES = "necrosis=1,oedema=2,rim=4"
VALIDATION = "--sample_interval 2 --val_cases 1"


@pytest.fixture(scope="module")
def label_maps(tmp_path_factory):
    """A FOLDER data set of 4 pictures, slices of BraTS phantoms with their labels 1, 2 and 4 as masks."""
    folder = tmp_path_factory.mktemp("labels")
    for part in ("images", "masks"):
        (folder / part).mkdir()
    for n in range(4):
        case = phantom.brats_case(n, size=32, num_slices=7)
        k = int((case["seg"] > 0).sum(axis=(0, 1)).argmax())
        image = np.stack([case[kind][..., k] / case[kind].max() for kind in ("t1ce", "t2", "flair")], axis=-1)
        Image.fromarray((255 * image).astype(np.uint8)).save(folder / "images" / f"case{n}.png")
        Image.fromarray(case["seg"][..., k]).save(folder / "masks" / f"case{n}.png")
    return folder


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


# ---- what the data make of it ------------------------------------------------------------------------------------


def test_label_maps_in_a_folder(label_maps, tmp_path):
    dataset = build_dataset("FOLDER", label_maps, 32, need_masks=True, classes="rim=4,inside=1+2")
    labels = read(label_maps / "masks" / "case0.png")
    mask = dataset[0]["mask"][0].numpy()
    assert dataset.class_names == ("rim", "inside") and np.array_equal(mask[0], labels == 4)
    assert np.array_equal(mask[1], (labels == 1) | (labels == 2))
    assert str(build_dataset("FOLDER", label_maps, 32, classes="auto").classes) == "class_1=1,class_2=2,class_4=4"
    with pytest.raises(
        UserError, match="case0.png: its values 0 .*, 4 .* are no mask of one"
    ):  # as before: one class by default
        build_dataset("FOLDER", label_maps, 32, need_masks=True)[0]


@pytest.mark.parametrize(
    "labels, expected",
    [
        ('{"0": "background", "1": "liver", "2": "liver tumour"}', "liver=1,liver tumour=2"),
        ('{"background": 0, "whole": [1, 2], "core": [2]}', "whole=1+2,core=2"),
        ('{"background": 0}', 'has no "labels" that name classes'),
        ('{"a": "b"}', "'a': 'b' in \"labels\" is no name with its label value"),
        ("3", '"labels" must be'),
    ],
)
def test_names_of_dataset_json(label_maps, tmp_path, labels, expected):
    shutil.copytree(label_maps, tmp_path / "data")
    (tmp_path / "data" / "dataset.json").write_text(f'{{"labels": {labels}}}')
    if "=" in expected:
        assert str(build_dataset("FOLDER", tmp_path / "data", 32, classes="auto").classes) == expected
    else:
        with pytest.raises(UserError, match=f"dataset.json: .*{expected}"):
            build_dataset("FOLDER", tmp_path / "data", 32, classes="auto")


def test_what_cannot_be_read_in_classes(label_maps, pictures, isic, tmp_path, save_picture):
    for name, folder, words in (
        ("ISIC", isic / "Train", "--classes auto: ISIC has masks of lesion, no label maps; leave it out"),
        ("FOLDER", label_maps / "images", "the masks hold no value but 0"),  # images alone: no masks at all
    ):
        with pytest.raises(UserError, match=words):
            build_dataset(name, folder, 32, classes="auto")
    with pytest.raises(UserError, match="--classes regions: belongs to --data_name BRATS"):
        build_dataset("FOLDER", label_maps, 32, classes="regions")
    rng = np.random.default_rng(0)
    for path, array, words in (
        ("a.jpg", rng.integers(0, 3, (32, 32), np.uint8), "is a JPEG file, and JPEG changes label values"),
        ("a.png", rng.integers(0, 3, (32, 32, 3), np.uint8), "is in colour; save label maps in grey"),
        ("a.png", rng.integers(0, 999, (32, 32), np.uint16), "hold more than 256 values"),
    ):
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        save_picture(tmp_path / "data" / "images" / "a.png", np.zeros((32, 32), np.uint8))
        save_picture(tmp_path / "data" / "masks" / path, array)
        with pytest.raises(UserError, match=words):
            build_dataset("FOLDER", tmp_path / "data", 32, classes="auto")


def test_label_maps_of_several_raters(label_maps, tmp_path):
    shutil.copytree(label_maps / "images", tmp_path / "images")
    for rater in ("ann", "bob"):
        shutil.copytree(label_maps / "masks", tmp_path / "masks" / rater)
    labels = read(tmp_path / "masks" / "bob" / "case0.png")
    Image.fromarray(np.where(labels == 4, 1, labels).astype(np.uint8)).save(tmp_path / "masks" / "bob" / "case0.png")
    dataset = build_dataset("FOLDER", tmp_path, 32, need_masks=True, classes=TISSUES)
    ann, bob = dataset[0]["mask"].numpy()
    assert ann.shape == (3, 32, 32) and np.array_equal(ann[1], bob[1]) and np.array_equal(ann[0] + ann[2], bob[0])
    assert [raters_of(dataset, dataset.cases[:1], k).shape[0] for k in range(3)] == [2, 2, 2]
    assert not truths_of(dataset, dataset.cases[:1])[2].any()  # one of two is no majority


def to_2023(folder, path):
    """A copy of BraTS phantoms with the names of 2023, where the enhancing tumour has the label 3."""
    shutil.copytree(folder, path)
    for file in sorted(path.rglob("*.nii.gz")):
        kind = file.name.removesuffix(".nii.gz").rpartition("_")[2]
        new = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f"}.get(kind, kind)
        if kind == "seg":
            image = nibabel.load(file)
            labels = np.asarray(image.dataobj)
            nibabel.save(nibabel.Nifti1Image(np.where(labels == 4, 3, labels).astype(np.uint8), image.affine), file)
        file.rename(file.with_name(file.name.replace(f"_{kind}.", f"-{new}.")))
    return path


def test_brats_regions_and_labels_follow_the_layout(brats, tmp_path):
    def whole(folder, classes):
        dataset = build_dataset("BRATS", folder, 32, split="train", classes=classes)
        return dataset, np.stack([dataset.load_mask(case)[0] for case in dataset.cases], axis=-1)

    new = to_2023(brats, tmp_path / "new")
    old_regions, regions = whole(brats, "regions")
    new_regions, same = whole(new, "regions")
    assert str(old_regions.classes) == "WT=1+2+4,TC=1+4,ET=4" and str(new_regions.classes) == "WT=1+2+3,TC=1+3,ET=3"
    assert np.array_equal(regions, same) and (regions.sum(axis=(1, 2, 3)) > 0).all()
    assert (regions[1] <= regions[0]).all() and (regions[2] <= regions[1]).all()
    old_labels, labels = whole(brats, "labels")
    assert old_labels.class_names == ("NCR", "ED", "ET") and str(whole(new, "auto")[0].classes) == "NCR=1,ED=2,ET=3"
    assert np.array_equal(labels[0] | labels[2], regions[1]) and np.array_equal(labels[1], regions[0] & ~regions[1])
    (new / "training" / "mixed").mkdir()
    for path in (brats / "training").rglob("*.nii.gz"):
        shutil.copy(path, new / "training" / "mixed" / path.name.replace("BraTS2021", "Brats18"))
    with pytest.raises(UserError, match="t1n.nii.gz has a name of 2023 or later, .*_t1.nii.gz an older one"):
        whole(new, "regions")
    shutil.rmtree(new / "training" / "mixed")
    for path in new.rglob("*-t1n.nii.gz"):  # renamed to the older names, the labels left
        for kind, old in (("t1n", "t1"), ("t1c", "t1ce"), ("t2w", "t2"), ("t2f", "flair")):
            path.with_name(path.name.replace("t1n", kind)).rename(path.with_name(path.name.replace("t1n", old)))
    with pytest.raises(UserError, match=r"seg.nii.gz: holds the label 3, .* --classes WT=1\+2\+3,TC=1\+3,ET=3"):
        whole(new, "regions")
    assert np.array_equal(whole(new, "WT=1+2+3,TC=1+3,ET=3")[1], regions)


# ---- end to end --------------------------------------------------------------------------------------------------


def test_three_classes_are_learned_by_heart(script, label_maps, tmp_path):
    run, results = tmp_path / "run", tmp_path / "results"
    learning = f"{TINY} --num_channels 16 --batch_size 4 --max_steps 140 --lr 2e-3 --ema_rate 0.9 --log_interval 140"
    data = ["--data_name FOLDER --data_dir", label_maps, "--out_dir", run, f"--classes {TISSUES}"]
    script("segmentation_train", [*data, learning])
    checkpoint = load_checkpoint(run / "model000140.pt")
    assert checkpoint.class_names == ["necrosis", "oedema", "rim"] and checkpoint.classes == parse_classes(TISSUES)
    assert checkpoint.config["diffusion"]["class_activation"] == "softmax"
    flags = "--num_ensemble 3 --diffusion_steps 5 --dpm_solver True --batch_size 4 --num_workers 0 --precision fp32"
    data = ["--data_dir", label_maps, "--out_dir", results, flags, "--save_samples True"]
    script("segmentation_sample", ["--model_path", run / "model000140.pt", *data])
    summary = strict_json(results / "summary.json")
    for name in checkpoint.class_names:
        assert summary["classes"][name]["ensemble"]["dice"]["mean"] >= 0.8, name  # about 0.95
        assert summary["classes"][name]["sample"]["mean"] >= 0.8 and summary["classes"][name]["coarse"]["mean"] >= 0.8
        assert summary["classes"][name]["calibration"]["ece"] < 0.05
    for n in range(4):
        truth, mask = read(label_maps / "masks" / f"case{n}.png"), read(results / "masks" / f"case{n}.png")
        assert (truth == mask).mean() > 0.95 and set(np.unique(mask)) <= {0, 1, 2, 4}
        assert set(np.unique(read(results / "samples" / f"case{n}_02.png"))) <= {0, 1, 2, 4}
        parts = [read(results / "probability" / name / f"case{n}.png").astype(int) for name in checkpoint.class_names]
        assert sum(parts).max() <= 65535 + 3  # with the background's they make one, but for rounding
    script("segmentation_eval", ["--pred_dir", results, "--fit_temperature", run / "model000140.pt"])
    assert load_checkpoint(run / "model000140.pt").config["calibration"]["temperature"] != 1
    segmenter = Segmenter.load(
        run / "model000140.pt", members=3, steps=5, sampler="dpm_solver", precision="fp32", device="cpu"
    )
    names = [f"case{n}" for n in range(4)]
    answers = segmenter([read(label_maps / "images" / f"{name}.png") for name in names], names)
    for name, answer in zip(names, answers, strict=True):
        assert np.array_equal(segmenter.classes.labels_of(answer.mask), read(results / "masks" / f"{name}.png"))
        assert answer.probability.sum(axis=0).max() <= 1 + 1e-6  # at the fitted temperature, which moves no mask
    script("segmentation_eval", ["--pred_dir", results, "--out_dir", tmp_path / "whole", "--classes tumour=1+2+4"])
    assert float(rows(tmp_path / "whole")[0]["dice"]) > 0.9  # the label maps are scored in other classes as well


@pytest.fixture(scope="module")
def regions(script, brats, tmp_path_factory):
    """A checkpoint of two steps on BraTS phantoms in regions."""
    out = tmp_path_factory.mktemp("regions")
    data = ["--data_name BRATS --data_dir", brats, "--out_dir", out, TINY]
    script("segmentation_train", [*data, "--classes regions --max_steps 2 --lr 1e-2 --augment light", VALIDATION])
    return out / "model000002.pt"


def test_brats_regions_end_to_end(regions, sample, script, brats, tmp_path, capsys):
    assert load_checkpoint(regions).validation["step"] == 2  # the case that watched over training has three masks too
    assert "val_dice_ET" in (regions.parent / "log.jsonl").read_text()
    assert script("check_data", ["--data_name BRATS --classes regions --data_dir", brats, "--out_dir", tmp_path]) in (
        0,
        1,
    )
    assert "3 classes: WT, TC, ET" in capsys.readouterr().out
    results = sample(regions, brats, FAST + " --save_samples True --batch_size 2")
    name = "BraTS2021_05000"
    theirs = nibabel.load(brats / "testing" / name / f"{name}_seg.nii.gz")
    ours = nibabel.load(results / f"{name}_seg.nii.gz")
    assert np.array_equal(ours.affine, theirs.affine) and ours.shape == theirs.shape
    assert set(np.unique(np.asarray(ours.dataobj))) <= {0, 1, 2, 4}
    for region in ("WT", "TC", "ET"):
        for part in ("prob", "uncertainty", "coarse"):
            assert nibabel.load(results / f"{name}_{part}_{region}.nii.gz").shape == theirs.shape
    assert [row["class"] for row in rows(results)] == ["WT", "TC", "ET", "mean"]
    assert strict_json(results / "manifest.json")["data"]["classes"] == "regions"
    before = (results / "summary.json").read_text()
    script("segmentation_eval", ["--pred_dir", results])
    assert (results / "summary.json").read_text() == before and "WT" in capsys.readouterr().out
    script("segmentation_eval", ["--pred_dir", results, "--out_dir", tmp_path / "labels", "--classes labels"])
    assert [row["class"] for row in rows(tmp_path / "labels")] == ["NCR", "ED", "ET", "mean"]


def test_results_are_in_the_sampled_data_s_own_labels(regions, sample, brats, tmp_path):
    new, sure = to_2023(brats, tmp_path / "new"), load_checkpoint(regions)
    for weights in (sure.model, *sure.ema.values()):  # a network that marks every pixel as every region
        last = [name for name in weights if name.startswith("head.") and name.endswith("bias")][-1]
        weights[last] = weights[last] + 20
    save_checkpoint(sure, tmp_path / "sure.pt")
    old, results = (
        sample(tmp_path / "sure.pt", folder, FAST, out) for folder, out in ((brats, "of_old"), (new, "of_new"))
    )
    masks = [
        np.asarray(nibabel.load(folder / f"{name}_seg.nii.gz").dataobj)
        for folder, name in ((old, "BraTS2021_05000"), (results, "BraTS2021_05000"))
    ]
    assert (masks[0] == 4).all() and (masks[1] == 3).all()
    assert strict_json(results / "manifest.json")["settings"]["classes"] == "WT=1+2+3,TC=1+3,ET=3"


def test_classes_that_contradict_the_checkpoint(regions, refusal, script, brats, label_maps, trained, tmp_path):
    data = ["--model_path", regions, "--data_dir", brats, "--out_dir", tmp_path / "none", FAST]
    assert "the checkpoint was trained with WT=1+2+4, TC=1+4, ET=4 (regions that overlap)" in refusal(
        "segmentation_sample", [*data, "--classes labels"]
    )
    assert "the checkpoint was trained with foreground" in refusal(
        "segmentation_sample",
        ["--model_path", trained, "--data_dir", label_maps, "--out_dir", tmp_path / "none", f"--classes {TISSUES}"],
    )
    assert "the classes must overlap in both or in neither" in refusal(
        "segmentation_sample", [*data, "--classes WT=1,TC=2,ET=4"]
    )
    script("segmentation_train", ["--resume_checkpoint auto --max_steps 3 --out_dir", regions.parent])
    assert load_checkpoint(regions.parent / "model000003.pt").classes.names == ("WT", "TC", "ET")
    assert "has the classes NCR=1" in refusal(
        "segmentation_train", ["--resume_checkpoint auto --max_steps 4 --classes labels --out_dir", regions.parent]
    )
    assert "--classes liver: 'liver' is not NAME=VALUE" in refusal(
        "segmentation_train", ["--data_name FOLDER --classes liver --data_dir", label_maps, "--out_dir", tmp_path / "n"]
    )


def test_classes_that_no_mask_holds_are_warned_of(script, pictures, tmp_path, capsys):
    """1 for what is 255 in the files, as anyone would write once."""
    data = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path / "run", TINY, "--max_steps 1"]
    script("segmentation_train", [*data, "--sample_interval 1 --classes lesion=1"])
    told = capsys.readouterr().out
    assert "warning: nothing is marked by --classes lesion=1 in any mask looked at" in told
    assert "validation Dice undefined (no case has anything to segment)" in told
    script("segmentation_train", [*data[:2], "--out_dir", tmp_path / "other", TINY, "--max_steps 1"])
    assert "nothing is marked" not in capsys.readouterr().out
