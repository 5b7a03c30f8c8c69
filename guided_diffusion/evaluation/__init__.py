"""Masks against truth: metrics, calibration, diversity, uncertainty and statistics."""
