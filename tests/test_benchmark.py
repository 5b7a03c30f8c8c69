"""The benchmark: what it counts, that its paths compute the same, and its figures through the script's door."""

import contextlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from guided_diffusion import benchmark as measuring
from guided_diffusion import workloads
from guided_diffusion.benchmark import Timing, compare, count, measured_peak, peak_memory, time_by_turns
from guided_diffusion.condition import CrossAttention, UncertainSpatialAttention
from guided_diffusion.config import ModelOptions, build
from guided_diffusion.medsegdiff import MedSegDiffV1, MedSegDiffV2, build_model
from guided_diffusion.unet import SelfAttention
from guided_diffusion.workloads import DataBench, NetworkBench

SIZE = {"image_size": 16, "num_channels": 8, "channel_mult": "1,2", "num_res_blocks": 1, "attention_resolutions": "8"}
TINY = " ".join(f"--{name} {value}" for name, value in SIZE.items())
FEW = "--batch_size 2 --num_ensemble 3 --sampling_steps 2,3 --repeats 2 --image_channels 3 --precision fp32"
CPU = torch.device("cpu")
TIMING = {"seconds", "min", "max", "times", "warm_up_seconds", "peak_memory_bytes"}
RATIO = {"ratio", "ratio_min", "ratio_max"}


@pytest.fixture(autouse=True)
def small_peaks(monkeypatch):
    monkeypatch.setitem(measuring.MATMUL_SIZES, "cpu", (64,))
    monkeypatch.setitem(measuring.CONVOLUTION_SIZES, "cpu", ((1, 16, 16),))


@pytest.fixture
def benchmark(script, tmp_path):
    """A function (flags) that runs the script at the smallest size and returns what it wrote."""

    def run(flags):
        script("benchmark", [TINY, FEW, flags, "--out", tmp_path / "new" / "figures.json"])
        return json.loads((tmp_path / "new" / "figures.json").read_text())

    return run


@pytest.fixture
def small_phantoms(monkeypatch):
    monkeypatch.setattr(workloads, "PICTURE_SIZE", 32)
    monkeypatch.setattr(workloads, "VOLUME_SIZE", 16)
    monkeypatch.setattr(workloads, "VOLUME_SLICES", 6)


def network_bench(**flags):
    options = build(ModelOptions, {**SIZE, **flags})
    return NetworkBench(options, CPU, "fp32", image_channels=3, batch_size=2, members=3)


# ---- through the door --------------------------------------------------------------------------------------------


def test_table_and_file_hold_all_that_is_promised(benchmark, small_phantoms, capsys):
    figures = benchmark("--version v1")
    table = capsys.readouterr().out
    for words in (
        "machine: ",
        "threads",
        "M parameters",
        "FLOPs of one image",
        "plain path: fp32, one member at a time",
        "fast path: fp32, all members",
        "this may take",
        "peak of this machine",
        "denoising step, 3 members",
        "training step, 2 images",
        "sampling, 2 steps, 3 members",
        "plain / fast",
        "plain, condition cached / fast",
        "1000 plain steps / 20 fast, extrapolated",
        "largest difference of masks",
        "sampling of one image",
        "decompressed for every slice",
        "cached: from the cache that is there",
    ):
        assert words in table
    assert figures["machine"].keys() >= {"cpu", "cores", "threads", "load", "torch", "gpu"}
    assert figures["settings"]["num_ensemble"] == 3 and figures["settings"]["version"] == "v1"
    assert figures["settings"]["sampling_steps"] == [2, 3] and figures["seconds"] > 0
    assert figures["flops"].keys() == {"forward", "condition", "step", "training_step"}
    assert figures["flops"]["training_step"] == 3 * 2 * figures["flops"]["forward"]
    assert figures["peak"].keys() == {"fp32"} and figures["peak"]["fp32"].keys() == {"matmul", "convolution"}
    assert "RSS" in figures["memory"]
    for part, images in (("step", 3), ("training_step", 2), ("sampling", 1)):
        assert figures[part].keys() >= RATIO
        assert figures[part]["ratio_min"] <= figures[part]["ratio_max"]
        for path in ("plain", "fast"):
            check_rates(figures[part][path], images, max(figures["peak"]["fp32"].values()))
    assert figures["condition"].keys() == TIMING
    assert figures["step"]["cached"].keys() == TIMING | RATIO
    seconds = figures["condition"]["seconds"] + 20 * figures["step"]["fast"]["seconds"]
    assert figures["ensemble"]["ratio"] == pytest.approx(1000 * figures["step"]["plain"]["seconds"] / seconds)
    assert figures["sampling"]["largest_difference"] < 1e-5
    assert [(c["steps"], c["members"]) for c in figures["sampling_table"]] == [(2, 1), (3, 1), (2, 3), (3, 3)]
    assert all(cell.keys() == TIMING | {"steps", "members"} for cell in figures["sampling_table"])
    assert list(figures["data"]) == ["isic", "brats_naive", "brats_cold", "brats_cached"]
    for entry in figures["data"].values():
        assert entry.keys() >= TIMING | {"items", "items_per_second"}
    assert all(figures["data"][name].keys() >= RATIO for name in ("brats_cold", "brats_cached"))


def check_rates(entry, images, peak):
    """The rates follow from the seconds and the FLOPs."""
    assert entry.keys() == TIMING | {"images_per_second", "flops", "flops_per_second", "share_of_peak"}
    assert len(entry["times"]) == 2 and entry["min"] <= entry["seconds"] <= entry["max"]
    assert entry["images_per_second"] == pytest.approx(images / entry["seconds"])
    assert entry["flops_per_second"] == pytest.approx(entry["flops"] / entry["seconds"])
    assert entry["share_of_peak"] == pytest.approx(entry["flops_per_second"] / peak)


def test_the_fast_path_is_set_against_a_process_as_torch_leaves_it(benchmark, capsys):
    step = benchmark("--version v1 --parts network --compare_memory True")["step"]
    by_itself, fast = step["by_itself"], step["fast"]["seconds"]
    assert by_itself["seconds"].keys() == by_itself["ratio"].keys() == {"plain", "cached", "fast"}
    assert by_itself["ratio"]["cached"] == pytest.approx(by_itself["seconds"]["cached"] / fast)
    assert "plain, condition cached, freed memory handed back / fast" in capsys.readouterr().out


def test_training_steps_too_and_a_table_over_batch_sizes(benchmark, capsys, monkeypatch):
    time_batch = workloads.NetworkBench.time_batch

    def up_to_three(bench, size, repeats):
        if size > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return time_batch(bench, size, repeats)

    monkeypatch.setattr(workloads.NetworkBench, "time_batch", up_to_three)
    figures = benchmark("--version v1 --parts training --compare_memory True --batch_sizes 1,3,8,16")
    by_itself, fast = figures["training_step"]["by_itself"], figures["training_step"]["fast"]["seconds"]
    assert by_itself["seconds"].keys() == {"plain", "fast"}
    assert by_itself["ratio"]["plain"] == pytest.approx(by_itself["seconds"]["plain"] / fast)
    assert [entry["batch_size"] for entry in figures["training_table"]] == [1, 3]
    for entry in figures["training_table"]:
        rate = 3 * entry["batch_size"] * figures["flops"]["forward"] / entry["seconds"]
        assert entry["flops_per_second"] == pytest.approx(rate)
        assert entry["share_of_matmul_peak"] == pytest.approx(rate / figures["peak"]["fp32"]["matmul"], rel=0.5)
    out = capsys.readouterr().out
    assert "plain, freed memory handed back / fast" in out and "of matmul peak" in out
    assert "a training step on 8 images runs out of memory; larger ones are left out" in out


@pytest.mark.parametrize("version", ["v2", "unet"])
def test_other_versions(benchmark, version):
    figures = benchmark(f"--version {version} --parts network,sampling --class_cond True")
    assert "training_step" not in figures and "data" not in figures
    assert figures["sampling"]["largest_difference"] < 1e-5
    steps = [1] if version == "unet" else [2, 3]
    assert [cell["steps"] for cell in figures["sampling_table"]] == steps * 2
    counts = figures["flops"]
    plain, fast = (figures["sampling"][path]["flops"] for path in ("plain", "fast"))
    assert plain == 3 * steps[0] * counts["forward"]
    assert fast == counts["condition"] + 3 * steps[0] * counts["step"]


def test_without_parts_it_only_counts_whatever_the_size(script, tmp_path, capsys):
    script("benchmark", ["--version v2 --preset ++ --parts '' --out", tmp_path / "x.json"])
    figures = json.loads((tmp_path / "x.json").read_text())
    assert figures["parameters"] > 1e10 and figures["flops"]["condition"] > 1e13 and "step" not in figures
    assert "M parameters" in capsys.readouterr().out


def test_presets_set_the_size_and_flags_win_over_them(script, tmp_path):
    script("benchmark", ["--preset B --num_channels 64 --parts '' --out", tmp_path / "x.json"])
    settings = json.loads((tmp_path / "x.json").read_text())["settings"]
    assert (settings["image_size"], settings["num_channels"], settings["channel_mult"]) == (256, 64, "1,1,2,2,4,4")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--parts network,loading", "--parts network,loading: loading is none of network, training, sampling, data"),
        ("--sampling_steps 4,x", "--sampling_steps 4,x: must be like 4,10,20"),
        ("--sampling_steps 0", "--sampling_steps 0: must be like"),
        ("--sampling_steps 1000", "--sampling_steps 1000: must be below T = 1000"),
        ("--batch_sizes 2,0", "--batch_sizes 2,0: must be like 1,2,4,8"),
        ("--repeats 0", "--repeats 0: must be above 0"),
        ("--out figures.txt", "--out figures.txt: must be the name of a .json file"),
        ("--image_size 17", "image size 17 does not work with 2 levels"),
        ("--version unet --learn_sigma True", "leave out --learn_sigma True"),
        ("--max_steps 5", "--max_steps is a flag of segmentation_train.py"),
        ("--precision fp8", "--precision fp8: must be one of"),
    ],
)
def test_bad_flags_are_refused_in_one_line(refusal, tmp_path, flags, words):
    assert words in refusal("benchmark", [TINY, "--out", tmp_path / "x.json", flags])
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_refused_before_measuring(refusal, tmp_path):
    (tmp_path / "file").write_text("")
    line = refusal("benchmark", [TINY, "--out", tmp_path / "file" / "x.json"])
    assert f"{tmp_path / 'file'}: cannot be written to" in line and line.endswith("choose another --out")


def test_a_failing_compiler_is_told_in_one_line(refusal, tmp_path, monkeypatch):
    def no_compiler(*args, **keywords):
        raise RuntimeError("no C++ compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", lambda *args, **keywords: no_compiler)
    line = refusal("benchmark", [TINY, FEW, "--compile True --parts training --out", tmp_path / "x.json"])
    assert "--compile True: the training part fails (no C++ compiler)" in line


# ---- what is counted ---------------------------------------------------------------------------------------------


def test_flops_of_a_net_of_one_level_summed_by_hand():
    """The plain U-Net with one level of width w on S x S pixels, one block: every convolution and product named."""
    w, image_channels, side = 8, 3, 4
    options = {"version": "unet", "image_size": side, "num_channels": w, "channel_mult": "1", "num_res_blocks": 1}
    counts = count(build(ModelOptions, {**options, "attention_resolutions": ""}), image_channels)
    pixels = side * side

    def conv(inputs, outputs, taps=9):
        return 2 * inputs * outputs * taps * pixels

    encoder = conv(image_channels, w) + 2 * conv(w, w)  # stem, residual block
    attention = conv(w, 3 * w, 1) + 2 * (2 * pixels * pixels * w) + conv(w, w, 1)  # q k v, q k^T and times v, out
    middle = 2 * conv(w, w) + attention + 2 * conv(w, w)
    decoder = 2 * (conv(2 * w, w) + conv(w, w) + conv(2 * w, w, 1))  # two blocks, each with a skip's channels
    assert counts.condition == encoder + middle + decoder + conv(w, 1)
    assert counts.step == 0 and counts.forward == counts.condition


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_flops_equal_those_of_every_layer_by_formula(version):
    """Each layer's own formula, from the shapes that a real pass shows; FLOPs and parameters, condition and step."""
    options = build(ModelOptions, {**SIZE, "version": version, "class_cond": True, "anchor_levels": 2})
    model, total = build_model(options, 3, 1, num_labels=2), [0]

    def add(layer, inputs, output):
        x = inputs[0]
        if isinstance(layer, nn.Conv2d):
            total[0] += 2 * output.numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            total[0] += 2 * output.numel() * layer.in_features
        elif isinstance(layer, (SelfAttention, CrossAttention)):
            total[0] += 4 * x.shape[1] * (x.shape[2] * x.shape[3]) ** 2  # affinities, and the mean of the values
        elif isinstance(layer, UncertainSpatialAttention):
            total[0] += 2 * x.numel() * 7 * 7  # one Gaussian a channel

    for layer in model.modules():
        layer.register_forward_hook(add)
    with torch.no_grad():
        condition = model.encode(torch.randn(1, 3, 16, 16), torch.zeros(1, dtype=torch.long))
        of_condition, total[0] = total[0], 0
        model(torch.randn(1, 1, 16, 16), torch.zeros(1), condition)
    assert of_condition > 0 and total[0] > 0
    parameters = sum(len(p.flatten()) for p in model.parameters())
    assert count(options, 3) == (parameters, of_condition, total[0])


# ---- what is compared --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        {"version": "v1"},
        {"version": "v1", "class_cond": True, "learn_sigma": True},
        {"version": "v2"},
        {"version": "v2", "concat_image": False, "class_cond": True},
        {"version": "unet"},
    ],
    ids=lambda flags: "-".join(map(str, flags.values())),
)
def test_both_paths_give_the_same_masks(flags):
    bench = network_bench(**flags)
    plain, fast = bench.draw("plain", 3, 3), bench.draw("fast", 3, 3)
    assert plain.shape == fast.shape == (3, 1, 1, 16, 16)
    torch.testing.assert_close(plain, fast, atol=1e-5, rtol=0)
    assert fast.std() > 1e-3  # the network says something
    if flags["version"] != "unet":
        assert (fast[0] - fast[1]).abs().max() > 1e-3  # and members differ


@pytest.mark.parametrize("version", [MedSegDiffV1, MedSegDiffV2])
def test_the_plain_path_takes_members_one_by_one_and_encodes_at_every_step(version, monkeypatch):
    encoded, denoised = [], []
    encode, forward = version.encode, version.forward
    monkeypatch.setattr(version, "encode", lambda self, x, *a: encoded.append(len(x)) or encode(self, x, *a))
    monkeypatch.setattr(version, "forward", lambda self, x, *a: denoised.append(len(x)) or forward(self, x, *a))
    bench = network_bench(version="v1" if version is MedSegDiffV1 else "v2")
    bench.draw("fast", 2, 3)
    assert (encoded, denoised) == ([1], [3, 3])
    encoded.clear(), denoised.clear()
    bench.draw("plain", 2, 3)
    assert (encoded, denoised) == ([1] * 6, [1] * 6)


def test_training_steps_train_each_its_own_network_alike(monkeypatch):
    bench, loops, make = network_bench(version="v1"), [], workloads.TrainLoop
    monkeypatch.setattr(workloads, "TrainLoop", lambda *a, **k: loops.append(make(*a, **k)) or loops[-1])
    before = [parameter.clone() for parameter in bench.model.parameters()]
    assert bench.time_training(1).keys() == {"plain", "fast"}
    plain, fast = loops
    assert plain.step == fast.step == 2
    for start, one, other in zip(before, plain.model.parameters(), fast.model.parameters(), strict=True):
        assert (start != one).any()
        torch.testing.assert_close(one, other)
    assert fast.optimizer.defaults["fused"] and not plain.optimizer.defaults["fused"]


def test_the_naive_way_decompresses_for_every_slice(small_phantoms, tmp_path, reads, monkeypatch):
    monkeypatch.setattr(workloads, "NAIVE_SLICES", 3)
    bench, counts = DataBench(tmp_path, 16, 4), []
    reads.clear()

    def note():
        counts.append(len(reads))
        reads.clear()

    loaded = bench.time_loading(1, note)
    naive, cold = 3 * 5, 2 * 5  # files of three slices and of two volumes: four modalities and the truth
    assert counts == [0, naive, cold, 0] * 2
    assert {name: items for name, (_, items) in loaded.items()} == {
        "isic": 8,
        "brats_naive": 3,
        "brats_cold": 12,
        "brats_cached": 12,
    }


# ---- how it is timed ---------------------------------------------------------------------------------------------


def test_calls_are_timed_by_turns():
    order, done = [], []
    calls = {name: lambda name=name: order.append(name) for name in "AB"}
    timings = time_by_turns(calls, 3, CPU, lambda: done.append(1))
    assert order == ["A", "B"] * 4 and len(done) == 8  # the first of each is the warm-up
    assert [len(timing.times) for timing in timings.values()] == [3, 3]


def test_the_ratio_is_that_of_medians_and_its_spread_that_of_pairs():
    timings = {"plain": Timing([4.0, 9.0, 6.0], 0.0, 0), "fast": Timing([2.0, 1.0, 3.0], 0.0, 0)}
    assert compare(timings) == {"ratio": 3.0, "ratio_min": 2.0, "ratio_max": 9.0}
    assert compare(timings, scale=10) == {"ratio": 30.0, "ratio_min": 20.0, "ratio_max": 90.0}


def test_peak_memory_of_a_call():
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        taken = [peak_memory(lambda size=size: torch.ones(size * 2**18).sum(), CPU) / 2**20 for size in (200, 50)]
        assert 195 < taken[0] < 230 and 45 < taken[1] < 80  # the second is not hidden by the first
        return
    pytest.skip("this system does not let a process reset its peak")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_peak_is_measured_by_products_and_convolutions(precision):
    assert all(value > 0 for value in measured_peak(precision, CPU, repeats=1).values())
