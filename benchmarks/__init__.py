"""Measurements of tfalign: `python -m benchmarks.quality`, `python -m benchmarks.speed`. Results lie in `results/`."""
