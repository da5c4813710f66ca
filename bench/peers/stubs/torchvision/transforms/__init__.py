"""Only here so that ``torchvision.transforms.functional`` can be imported."""
