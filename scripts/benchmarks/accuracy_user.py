"""Contenders as a user meets them: train with data, a seed and a time limit, sample by default, evaluate.

Each command is a process of its own, so that its processor time is known.
"""

import shlex
import shutil
from pathlib import Path

from accuracy_runs import SECONDS, append, call_script, is_recorded, machine, outcome

from guided_diffusion.checkpoint import checkpoint_file, load_checkpoint
from guided_diffusion.config.sample_options import SampleOptions
from guided_diffusion.config.settings import members_as_trained
from guided_diffusion.inference.plan import describe_augmentation
from guided_diffusion.io.files import write_json
from guided_diffusion.io.texts import read_json
from guided_diffusion.runtime.console import console
from guided_diffusion.runtime.version import VERSION


def run_as_user(options, data, contender, how, seed):
    """Train, sample and evaluate a contender, unless its line is there; append the line.

    data: a `DataSet`. how: its `Contender`; where another contender has its weights, they are trained once. A training
    that was stopped begins anew, since a resumed one would be given the minutes again.
    """
    what = {"kind": "user", "split": options.split, "set": data.name, "contender": contender, "seed": seed}
    what |= {"minutes": options.minutes, "version": VERSION, "flags": how.training, "sampling": how.sampling}
    if is_recorded(options, what):
        return
    console().info(f"\n=== {data.name}, {contender}, seed {seed}: {options.minutes:g} minutes")
    folder = Path(options.out_dir) / f"{options.split}_{data.name}_{how.weights_of or contender}_{seed}"
    folder = folder.with_name(f"{folder.name}_{options.minutes:g}min_{VERSION}")
    trained = _train(options, data, how.training, folder, seed)
    if options.only_train:
        return
    checkpoint = checkpoint_file(folder)
    results = folder / f"results_{contender}"
    shutil.rmtree(results, ignore_errors=True)
    words = ["--model_path", str(folder), *data.as_user(options.split), "--out_dir", str(results)]
    words += [*views_of(checkpoint), *shlex.split(how.sampling)]
    _, processor = call_script(options, "segmentation_sample.py", words)
    call_script(options, "segmentation_eval.py", ["--pred_dir", str(results), *data.as_user(options.split)[2:]])
    manifest = read_json(results / "manifest.json")
    settings = manifest["settings"]
    line = what | {"machine": machine(), "steps": manifest["step"]} | trained  # "asked": the flags, those of data too
    line |= {"sample_cpu_seconds": processor, "views": "tiles" if settings["tile"] else describe_augmentation(settings)}
    append(options.record, line | outcome(results, data.build("test", split=options.split)))


def _train(options, data, flags, folder, seed):
    """Train into `folder`, unless that is done with the same flags. Returns the seconds it took."""
    done, asked = folder / SECONDS, shlex.join([*data.held_out(), *shlex.split(flags)])
    if not done.is_file() or read_json(done)["asked"] != asked:
        shutil.rmtree(folder, ignore_errors=True)
        words = [*data.as_user(options.split), "--out_dir", str(folder), "--seed", str(seed)]
        words += ["--max_minutes", f"{options.minutes:g}", *shlex.split(asked)]
        cache = str(folder.with_name(f"{folder.name}_cache"))  # an earlier run would spare this one the decoding
        seconds, processor = call_script(options, "segmentation_train.py", words, MEDSEGDIFF_CACHE=cache)
        shutil.rmtree(cache, ignore_errors=True)
        write_json(done, {"train_seconds": seconds, "train_cpu_seconds": processor, "asked": asked})
    return read_json(done)


def views_of(checkpoint):
    """The flags of test-time augmentation that make a plain U-Net equal to a diffusion, a list of words.

    By default a plain U-Net has none, whose readers compare single passes. Beside a diffusion it gets what a diffusion
    trained by the same flags has, since a mean over views alone raises the Dice. Others get no flags.
    """
    config = load_checkpoint(checkpoint).config
    if config["model"]["version"] != "unet":
        return []
    same = members_as_trained(SampleOptions(), config["train"])
    return ["--symmetries", same.symmetries, "--scales", same.scales]
