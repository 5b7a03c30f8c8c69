"""Medical image segmentation with diffusion models: MedSegDiff, MedSegDiff-V2 and the tools around them."""
