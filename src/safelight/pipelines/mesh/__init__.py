"""Photographs with known cameras to a mesh (Pixel2Mesh++)."""
