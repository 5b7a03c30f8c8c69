"""Export a checkpoint to share it; the code is in guided_diffusion/cli/verbs.py and export.py."""

from guided_diffusion.runtime.errors import interruptible_imports, run_script

if __name__ == "__main__":
    interruptible_imports()  # torch takes seconds

from guided_diffusion.cli.verbs import export_main as main

if __name__ == "__main__":
    run_script(main)
