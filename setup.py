"""Packaging: the metadata is in pyproject.toml. `pip install -r requirement.txt` installs this in place."""

from setuptools import setup

setup()
