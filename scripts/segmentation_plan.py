"""Plan a training run; the code is in guided_diffusion/cli/verbs.py and plan.py."""

from guided_diffusion.runtime.errors import interruptible_imports, run_script

if __name__ == "__main__":
    interruptible_imports()  # torch takes seconds

from guided_diffusion.cli.verbs import plan_main as main

if __name__ == "__main__":
    run_script(main)
