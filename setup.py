"""Packaging: `pip install -r requirement.txt` installs this in place, so that the scripts run with no path tricks."""

from setuptools import find_packages, setup

setup(
    name="guided_diffusion",
    version="0.5.0",
    description="Medical image segmentation with diffusion models: MedSegDiff, done right",
    license="MIT",
    packages=find_packages(include=["guided_diffusion*"]),
    package_data={"guided_diffusion.report": ["assets/*"], "guided_diffusion.config": ["recipes/*.yaml"]},
    python_requires=">=3.10",
)
