"""Large archives: jobs on the runners of Apache Beam."""

from tfalign.jobs.beam.archive import predict, prepare, realign

__all__ = ["predict", "prepare", "realign"]
