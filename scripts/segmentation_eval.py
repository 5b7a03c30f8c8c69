"""Compare predicted masks with the truth: overlap, surfaces, lesions, calibration and doubt, by case and on average. The code: guided_diffusion/cli/evaluate.py."""

from guided_diffusion.runtime.errors import interruptible_imports, run_script

if __name__ == "__main__":
    interruptible_imports()  # the import below takes seconds

from guided_diffusion.cli.evaluate import main

if __name__ == "__main__":
    run_script(main)
