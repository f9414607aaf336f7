"""Benchmarks of Duetime beside its peers: ``python -m benchmarks --list``."""
