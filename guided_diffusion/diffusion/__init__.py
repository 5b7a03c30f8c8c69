"""The mathematics of diffusion, and nothing else: schedule, losses, samplers."""
