"""The errors that a user can cause and mend.

Each says what was wrong, where, what was expected and what to do. The command line prints them as one line
and exits with code 2; from Python they are ordinary `ValueError`s. Anything else that is raised is a bug.
"""


class UserError(ValueError):
    """Something that the caller gave is wrong. The message is for people."""


class ConfigError(UserError):
    """A setting makes no sense, alone or together with another."""


class DataError(UserError):
    """Images or labels are missing, damaged or do not fit together."""


class RunError(UserError):
    """A run folder or a checkpoint cannot be used, or a training had to stop."""


class WeightsError(UserError):
    """Weights in a file are missing, damaged, of another network, or do not fit together."""
