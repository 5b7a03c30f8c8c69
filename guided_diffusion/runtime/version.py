"""The version of this program, which checkpoints record."""

VERSION = "0.8.0"
