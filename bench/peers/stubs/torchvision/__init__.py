"""Stands in for torchvision, of which only builds with CUDA are to be had: CAREamics imports it, N2V never calls it.

``__version__`` is written into exported model packages, which this benchmark does not make. Anything else that is
asked for fails.
"""

__version__ = "0"
