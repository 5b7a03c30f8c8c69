"""nnU-Net v2 within a limit of processor time. `accuracy_nnunet.py` runs this file with the python that has nnunetv2.

The folders are in nnU-Net's own environment variables: nnUNet_raw, nnUNet_preprocessed and nnUNet_results. Commands:

prepare MEMORY        fingerprint, plan and preprocessed data of the 2-D configuration. MEMORY: GB, or 0 for its default
train MINUTES SEED    all training cases, without a validation
predict RAW OUT TTA   masks of a folder of images by the sliding window. TTA: "mirror", or "none"
"""

import json
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as Base

NUMBER, CONFIGURATION, FOLD = 1, "2d", "all"
LR_POWER = 0.9  # of nnU-Net's polynomial decay
CPU = torch.device("cpu")


def prepare(memory):
    """Plan and preprocess in one process."""
    extract_fingerprints([NUMBER], num_processes=1, show_progress_bar=False)
    plan_experiments([NUMBER], gpu_memory_target_in_gb=memory or None)
    preprocess([NUMBER], configurations=[CONFIGURATION], num_processes=[1], show_progress_bar=False)


class nnUNetTrainer(Base):  # noqa: N801, prediction finds nnU-Net's own class by this name; their networks are alike
    """nnU-Net's trainer, whose learning rate falls to 0 over a limit of processor time instead of over 1000 epochs."""

    limit = 0.0  # seconds

    def run_training(self):
        """Train, and write checkpoint_final.pth and steps.json."""
        self.on_train_start()
        self.network.train()
        began, steps, used = time.process_time(), 0, 0.0
        while not steps or used + 0.5 * used / steps < self.limit:  # the limit is nearer than half a step
            for group in self.optimizer.param_groups:
                group["lr"] = self.initial_lr * max(0.0, 1 - used / self.limit) ** LR_POWER
            loss = self.train_step(next(self.dataloader_train))["loss"]
            steps, used = steps + 1, time.process_time() - began
            if steps % 10 == 1:
                self.print_to_log_file(f"step {steps}: {used:.0f} of {self.limit:.0f} s, loss {float(loss):.3f}")
        self.on_train_end()
        plan = self.configuration_manager
        facts = {"steps": steps, "loop_cpu_seconds": used, "batch_size": plan.batch_size}
        facts["patch_size"] = list(map(int, plan.patch_size))
        Path(self.output_folder_base, "steps.json").write_text(json.dumps(facts), encoding="utf-8")

    def plot_network_architecture(self):
        """Nothing: a picture of the network costs time."""


def train(minutes, seed):
    """Train on all cases."""
    for start in (random.seed, np.random.seed, torch.manual_seed):
        start(seed)
    (folder,) = Path(os.environ["nnUNet_preprocessed"]).glob(f"Dataset{NUMBER:03d}_*")
    plans, dataset = (
        json.loads((folder / name).read_text(encoding="utf-8")) for name in ("nnUNetPlans.json", "dataset.json")
    )
    plans["continue_training"] = False
    trainer = nnUNetTrainer(plans, CONFIGURATION, FOLD, dataset, device=CPU)
    trainer.limit = 60 * minutes * torch.get_num_threads()
    trainer.run_training()


def predict(raw, out, tta):
    """Predict all images of a folder, one after the other."""
    predictor = nnUNetPredictor(use_mirroring=tta == "mirror", device=CPU, allow_tqdm=False)
    (folder,) = Path(os.environ["nnUNet_results"]).glob("Dataset*/*")
    predictor.initialize_from_trained_model_folder(str(folder), (FOLD,))
    Path(out).mkdir(parents=True, exist_ok=True)
    predictor.predict_from_files_sequential(raw, out)


if __name__ == "__main__":
    command, *words = sys.argv[1:]
    threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
    if threads:
        torch.set_num_threads(threads)
    if command == "prepare":
        prepare(float(words[0]))
    elif command == "train":
        train(float(words[0]), int(words[1]))
    else:
        predict(*words)
