"""From a checkpoint and images to masks: members, their fusion and the results folder."""
