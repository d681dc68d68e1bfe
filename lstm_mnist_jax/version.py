"""The version of the package: said here, nowhere else."""

__version__ = "0.5.0"
