"""What can be wrong with what the trainer is given.

TrainerError
├── DataError      a file, row or trace that cannot be used; the message names it
├── ConfigError    a setting; the message names the field and what is allowed
├── GateError      a candidate that is worse than what serves
├── ReloadError    the server would not take the weights
├── ServerError    a server that a loop asks cannot be reached, did not start, or refused
└── TrainingError  a loop's training ended without a model
"""


class TrainerError(Exception):
    """The message is for the user; `__main__` prints it and exits with 1."""


class DataError(TrainerError):
    pass


class ConfigError(TrainerError):
    pass


class GateError(TrainerError):
    pass


class ReloadError(TrainerError):
    pass


class ServerError(TrainerError):
    pass


class TrainingError(TrainerError):
    pass
