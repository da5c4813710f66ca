"""Safelight restores, aligns, stacks and reconstructs images on whatever hardware there is."""

__version__ = "0.1.0"
