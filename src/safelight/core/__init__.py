"""Knows bytes, devices and time; nothing about images."""
