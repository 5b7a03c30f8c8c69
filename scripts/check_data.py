"""Check a data set before training; the code is in guided_diffusion/cli/verbs.py and check_data.py."""

from guided_diffusion.runtime.errors import interruptible_imports, run_script

if __name__ == "__main__":
    interruptible_imports()  # torch takes seconds

from guided_diffusion.cli.verbs import check_main as main

if __name__ == "__main__":
    run_script(main)
