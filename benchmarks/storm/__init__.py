"""Damaged and hostile inputs, bad disks and kills, over all commands: ``python -m benchmarks.storm``."""
