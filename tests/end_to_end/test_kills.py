"""A training run that is killed again and again, at any moment: nothing is lost, and it ends as if it never was."""

import random
import shlex
import time

import processes
from conftest import TINY, words
from helpers import checkpoints, equal, logged, temporaries, wait_for_more

from guided_diffusion.checkpoint import load_checkpoint, newest_checkpoint

KILLS = 12
FLAGS = (
    TINY + " --log_interval 2 --dropout 0.2 --schedule_sampler loss-second-moment --diffusion_steps 2 --ema_rate 0.9 "
    "--lr_anneal_steps 1000 --sample_interval 3 --val_cases 1"
)


def test_twelve_kills_lose_nothing(script, pictures, tmp_path):
    """Every other kill comes while a checkpoint is being written, the others at random moments of training."""
    data = ["--data_name FOLDER --data_dir", pictures, FLAGS]
    line = words([*data, "--save_interval 1 --resume_checkpoint auto --out_dir", tmp_path / "killed"])
    moments, whole, during_a_write = random.Random(0), {}, 0
    for kill in range(KILLS):
        child = processes.start(processes.train, line, log=tmp_path / "log")
        look = temporaries if kill % 2 else checkpoints
        wait_for_more(lambda look=look: look(tmp_path / "killed"), child)
        if not kill % 2:
            time.sleep(moments.uniform(0, 0.2))
        child.kill()
        child.join()
        assert child.exitcode == -9, (tmp_path / "log").read_text()
        during_a_write += bool(temporaries(tmp_path / "killed"))
        now = {path.name: path.read_bytes() for path in checkpoints(tmp_path / "killed")}
        assert now.items() >= whole.items()  # none is lost, and none is touched again
        for name in now.keys() - whole.keys():
            checkpoint = load_checkpoint(tmp_path / "killed" / name)
            assert checkpoint.step == int(name[5:11])
            assert equal(vars(checkpoint), vars(checkpoint))  # all tensors can be read
        whole = now
    assert during_a_write >= KILLS / 4 and len(whole) > KILLS / 4

    steps = len(whole) + 3
    script("segmentation_train", [shlex.join(line), f"--max_steps {steps}"])
    assert not temporaries(tmp_path / "killed")
    script("segmentation_train", [*data, f"--max_steps {steps} --out_dir", tmp_path / "alone"])
    killed, alone = (load_checkpoint(newest_checkpoint(tmp_path / out)) for out in ("killed", "alone"))
    assert killed.step == alone.step == steps
    for part in ("model", "ema", "optimizer", "scaler", "timestep_sampler", "validation"):
        assert equal(getattr(killed, part), getattr(alone, part)), part
    bests = [load_checkpoint(tmp_path / out / "best.pt") for out in ("killed", "alone")]
    assert equal(bests[0].model, bests[1].model) and bests[0].step == bests[1].step == alone.validation["step"]
    assert (tmp_path / "killed" / "last.pt").read_bytes() == newest_checkpoint(tmp_path / "killed").read_bytes()
    assert logged(tmp_path / "killed")[-1] == logged(tmp_path / "alone")[-1]  # its steps are all of the last life
