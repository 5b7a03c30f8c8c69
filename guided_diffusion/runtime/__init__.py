"""Errors, console, seeds, devices and processes. Imports nothing of the package."""
