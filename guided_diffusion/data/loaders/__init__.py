"""Loaders for published layouts, one module for each."""
