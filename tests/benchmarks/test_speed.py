"""The speed benchmark: what it counts, that its paths compute the same, how it times, and its figures."""

import contextlib
import dataclasses
import importlib
import json
from pathlib import Path

import pytest
import torch
from conftest import SCRIPTS
from torch import nn

from guided_diffusion.config.fields import build
from guided_diffusion.config.options import ModelOptions
from guided_diffusion.models.condition import CrossAttention, UncertainSpatialAttention
from guided_diffusion.models.medsegdiff import build_model
from guided_diffusion.models.unet import SelfAttention

SIZE = {"image_size": 16, "num_channels": 8, "channel_mult": "1,2", "num_res_blocks": 1, "attention_resolutions": "8"}
TINY = " ".join(f"--{name} {value}" for name, value in SIZE.items())
FEW = "--batch_sizes 2,3 --num_ensemble 3 --sampling_steps 2,3 --repeats 2 --image_channels 3 --precision fp32"
SPEED, CPU = "benchmarks/speed", torch.device("cpu")


@pytest.fixture(autouse=True)
def beside_each_other(monkeypatch):
    """A benchmark finds its neighbours, as when it is run by its path. Rounds and matrices are small."""
    monkeypatch.syspath_prepend(str(SCRIPTS / "benchmarks"))
    measuring = importlib.import_module("measuring")
    monkeypatch.setattr(measuring, "ROUND_SECONDS", 0.001)
    monkeypatch.setitem(measuring.MATMUL_SIZES, "cpu", (64,))


@pytest.fixture
def measuring():
    return importlib.import_module("measuring")


@pytest.fixture
def workloads():
    return importlib.import_module("workloads")


def figures_of(script, tmp_path, flags):
    script(SPEED, [TINY, FEW, flags, "--out", tmp_path / "new" / "figures.json"])
    return json.loads((tmp_path / "new" / "figures.json").read_text())


def test_table_and_file_hold_every_part(script, tmp_path, capsys):
    figures = figures_of(script, tmp_path, "--version v1 --cases 11")
    assert figures["machine"].endswith("threads, fp32") and figures["settings"]["num_ensemble"] == 3
    flops, peak = figures["flops"], figures["matmul_peak"]["fp32"]
    rows = {(row["what"], row["path"]): row for row in figures["rows"]}
    expected = {
        ("training step, 2 images", "plain"): 3 * 2 * flops["forward"],
        ("training step, 2 images", "fast"): 3 * 2 * flops["forward"],
        ("training step, 3 images", "fast"): 3 * 3 * flops["forward"],
        ("denoising step, 3 members", "plain"): 3 * flops["forward"],
        ("denoising step, 3 members", "plain, condition cached"): 3 * flops["step"],
        ("denoising step, 3 members", "fast"): 3 * flops["step"],
        ("condition, once an image", "fast"): flops["condition"],
        ("ensemble of 3, 2 steps", "plain"): 3 * 2 * flops["forward"],
        ("ensemble of 3, 2 steps", "fast"): flops["condition"] + 3 * 2 * flops["step"],
        ("ensemble of 3, 3 steps", "fast"): flops["condition"] + 3 * 3 * flops["step"],
        ("default ensemble of 5: bernoulli, 10 steps, scales 1, 0.9, 1.1", "fast"): flops["condition"]
        + 5 * 10 * flops["step"],  # V1 has no mask logits to average over the scales
    }
    assert {key: row["flops"] for key, row in rows.items()} == expected
    table = capsys.readouterr().out
    for (what, path), row in rows.items():
        assert len(row["rounds"]) == 2 and row["peak_memory_bytes"] >= 0
        assert row["flops_per_second"] == pytest.approx(row["flops"] / row["seconds"])
        assert row["share_of_matmul_peak"] == pytest.approx(row["flops_per_second"] / peak)
        assert ("ratio" in row) == (path != "fast") and what in table
        if "ratio" in row:
            assert row["ratio"] == pytest.approx(row["seconds"] / rows[what, "fast"]["seconds"])
            assert row["ratio_min"] <= row["ratio_max"]
    assert figures["largest_difference"] < 1e-5
    assert 0 < figures["resident_bytes"]["early"] and figures["resident_bytes"]["last"] > 0
    for words in (figures["machine"], "M parameters", "resident size after 10 cases", "after 11"):
        assert words in table


def test_the_plain_unet_answers_in_one_step(script, tmp_path):
    figures = figures_of(script, tmp_path, "--version unet --parts denoising,sampling --class_cond True")
    assert figures["largest_difference"] < 1e-5
    names = [(row["what"], row["path"]) for row in figures["rows"]]
    assert names[-2:] == [("ensemble of 3, 1 steps", "plain"), ("ensemble of 3, 1 steps", "fast")]
    assert ("denoising step, 3 members", "plain, condition cached") not in names


def test_without_parts_it_only_counts_whatever_the_size(script, tmp_path, capsys):
    script(SPEED, ["--version v2 --preset ++ --num_res_blocks 1 --parts '' --out", tmp_path / "x.json"])
    figures = json.loads((tmp_path / "x.json").read_text())
    assert figures["parameters"] > 1e9 and figures["flops"]["condition"] > 1e12 and not figures["rows"]
    assert figures["settings"]["num_channels"] == 512 and figures["settings"]["num_res_blocks"] == 1
    assert "M parameters" in capsys.readouterr().out


def test_the_default_answer_and_every_ensemble_encode_all_scales(script, tmp_path, workloads, monkeypatch):
    encoded, kind = [], workloads.build_model(build(ModelOptions, {**SIZE, "version": "v2"}), 3, 1, 2).__class__
    encode = kind.encode
    figures = figures_of(script, tmp_path, "--version v2 --recipe auto --parts sampling,answer")
    flops = figures["flops"]
    rows = {row["what"]: row["flops"] for row in figures["rows"] if row["path"] == "fast"}
    assert rows == {
        "ensemble of 3, 2 steps": 3 * flops["condition"] + 3 * 2 * flops["step"],
        "ensemble of 3, 3 steps": 3 * flops["condition"] + 3 * 3 * flops["step"],
        "default answer: one pass, scales 1, 0.9, 1.1": 3 * flops["condition"],
        "default ensemble of 3: bernoulli, 10 steps, scales 1, 0.9, 1.1": 3 * flops["condition"]
        + 3 * 10 * flops["step"],
    }
    assert figures["largest_difference"] < 1e-5 and "published" not in figures
    bench = workloads.NetworkBench(
        build(ModelOptions, {**SIZE, "version": "v2"}), CPU, "fp32", image_channels=3, members=3
    )
    monkeypatch.setattr(kind, "encode", lambda self, x, *a: encoded.append(len(x)) or encode(self, x, *a))
    bench.answer(bench.plan())
    bench.draw("fast", bench.plan(diffusion_steps=2))
    assert sum(encoded) == 2 * 3


def test_figures_of_the_published_code_stand_beside_its_size_without_a_ratio(script, tmp_path, capsys):
    script(SPEED, ["--version v1 --preset B --parts '' --out", tmp_path / "x.json"])
    figures = json.loads((tmp_path / "x.json").read_text())
    assert figures["published"]["seconds"] == {"training step, 2 images": 26.5, "denoising step, 1 member": 2.7}
    assert "another machine" in figures["published"]["where"] and not figures["rows"]
    table = capsys.readouterr().out
    assert "training step, 2 images   published*     26.5\n" in table and "* quoted: the published code" in table


def test_startup_is_timed_beside_the_import_of_torch(monkeypatch):
    speed = importlib.import_module("speed")
    for name in speed.COMMANDS:
        monkeypatch.setitem(speed.COMMANDS, name, ("-c", "pass"))
    monkeypatch.setattr(speed, "prepare_children", lambda: None)  # it changes this process's environment
    times = speed.startup_seconds(1, CPU)
    assert times.keys() == speed.COMMANDS.keys() and min(times.values()) > 0


def test_batch_sizes_end_where_memory_does(script, tmp_path, workloads, monkeypatch, capsys):
    make = workloads.NetworkBench.training_step

    def small_memory(bench, path, size):
        if size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make(bench, path, size)

    monkeypatch.setattr(workloads.NetworkBench, "training_step", small_memory)
    figures = figures_of(script, tmp_path, "--version v1 --parts training")
    assert [row["what"] for row in figures["rows"]] == ["training step, 2 images"] * 2
    assert "a training step on 3 images runs out of memory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            "--parts training,loading",
            "loading is none of training, denoising, sampling, answer, startup",
        ),
        ("--sampling_steps 4,x", "--sampling_steps 4,x: must be whole numbers"),
        ("--sampling_steps 1000", "--sampling_steps 1000: must be below T = 1000"),
        ("--batch_sizes 2,0", "--batch_sizes 2,0: must be whole numbers above 0"),
        ("--cases 5", "--cases 5: must be above 10"),
        ("--out figures.txt", "--out figures.txt: must be the name of a .json file"),
    ],
)
def test_bad_flags_are_refused_in_one_line(refusal, tmp_path, flags, words):
    assert words in refusal(SPEED, [TINY, "--out", tmp_path / "x.json", flags])
    assert not list(tmp_path.iterdir())


# ---- counts and paths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_flops_equal_those_of_every_layer_by_formula(version, workloads):
    """Each layer's own formula, from the shapes of a real pass; FLOPs and parameters, condition and step."""
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
            total[0] += 2 * 7 * x[..., 0].numel() * (x.shape[-1] + 6 + x.shape[-1])  # down, also at the edges; across

    for layer in model.modules():
        layer.register_forward_hook(add)
    with torch.no_grad():
        condition = model.encode(torch.randn(1, 3, 16, 16), torch.zeros(1, dtype=torch.long))
        of_condition, total[0] = total[0], 0
        model(torch.randn(1, 1, 16, 16), torch.zeros(1), condition)
    assert of_condition > 0 and total[0] > 0
    parameters = sum(len(p.flatten()) for p in model.parameters())
    assert workloads.count(options, 3) == (parameters, of_condition, total[0])


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_plain_path_encodes_at_every_step_and_gives_the_same_masks(version, workloads, monkeypatch):
    options = build(ModelOptions, {**SIZE, "version": version, "class_cond": True})
    bench, encoded = workloads.NetworkBench(options, CPU, "fp32", image_channels=3, members=3), []
    encode = type(bench.model).encode
    monkeypatch.setattr(type(bench.model), "encode", lambda self, x, *a: encoded.append(len(x)) or encode(self, x, *a))
    plan = dataclasses.replace(bench.plan(diffusion_steps=2, dpm_solver=True), scales=())
    fast = bench.draw("fast", plan)
    assert encoded == [1]
    plain = bench.draw("plain", plan)
    assert encoded == [1] * 7
    torch.testing.assert_close(plain, fast, atol=1e-5, rtol=0)
    assert (fast[0] - fast[1]).abs().max() > 1e-3  # members differ, so the comparison means something


def test_training_steps_train_each_its_own_network_alike(workloads, monkeypatch):
    loops, make = [], workloads.training_loop
    monkeypatch.setattr(workloads, "training_loop", lambda *a, **k: loops.append(make(*a, **k)) or loops[-1])
    options = build(ModelOptions, {**SIZE, "version": "v1"})
    bench = workloads.NetworkBench(options, CPU, "fp32", image_channels=3, members=3)
    before = [parameter.clone() for parameter in bench.model.parameters()]
    for path in ("plain", "fast"):
        torch.manual_seed(1)  # the same images and masks
        bench.training_step(path, 2)()
    plain, fast = loops
    for start, one, other in zip(before, plain.model.parameters(), fast.model.parameters(), strict=True):
        assert (start != one).any()
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    assert fast.optimizer.defaults["fused"] and not plain.optimizer.defaults["fused"]


# ---- timing ------------------------------------------------------------------------------------------------------


def test_calls_are_timed_by_turns(measuring, monkeypatch):
    monkeypatch.setattr(measuring, "ROUND_SECONDS", 0.0)
    order = []
    timings = measuring.time_by_turns({name: lambda name=name: order.append(name) for name in "AB"}, 3, CPU)
    turns = [name for place, name in enumerate(order) if not place or order[place - 1] != name]
    assert turns == ["A", "B"] * 4  # the first of each is the warm-up
    assert [len(timing.rounds) for timing in timings.values()] == [3, 3]


def test_the_ratio_is_of_medians_and_its_spread_of_rounds(measuring):
    slow, fast = measuring.Timing(0, [4.0, 9.0, 6.0]), measuring.Timing(0, [2.0, 1.0, 3.0])
    assert measuring.ratio(slow, fast) == (3.0, 2.0, 9.0)


def test_peak_memory_of_a_call(measuring):
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        sizes = (200, 50)
        taken = [measuring.peak_memory(lambda size=size: torch.ones(size * 2**18).sum(), CPU) / 2**20 for size in sizes]
        assert 195 < taken[0] < 230 and 45 < taken[1] < 80  # the second is not hidden by the first
        return
    pytest.skip("this system does not let a process reset its peak")
