"""Every option once: dataclasses, command line, recipes and presets."""
