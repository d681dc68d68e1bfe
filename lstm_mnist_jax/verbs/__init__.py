"""The verbs of the command line: each parses its words, calls the package, and prints. They decide nothing.

JAX and what builds on it are imported in the verbs, so that `--help` and mistakes are answered at once.
"""
