"""The commands: each parses its command line, builds, calls and reports."""
