"""Train a segmentation model; the code is in guided_diffusion/cli/verbs.py and train.py."""

from guided_diffusion.runtime.errors import interruptible_imports, run_script

if __name__ == "__main__":
    interruptible_imports()  # torch takes seconds

from guided_diffusion.cli.verbs import train_main as main

if __name__ == "__main__":
    run_script(main)
