"""What goes wrong before anything is served, and the exit codes that tell a supervisor which.

QuireError
  ConfigError      an option is wrong                                     exit 2
  ModelError       the model folder or a weight is missing or wrong       exit 3
  PortInUse        the port is taken                                      exit 4
  EngineLost       the worker died too often                              exit 5
"""


class QuireError(Exception):
    """Something a person can mend; the message is one line for that person."""

    exit_code = 1


class ConfigError(QuireError):
    """An option is unknown, of the wrong type or out of range."""

    exit_code = 2


class ModelError(QuireError):
    """The model cannot be loaded as it is: names the file, the key, expected and found."""

    exit_code = 3


class PortInUse(QuireError):
    """The address to listen on is taken."""

    exit_code = 4


class EngineLost(QuireError):
    """The worker died more often than it may be restarted."""

    exit_code = 5
