"""The errors that graphopt raises: one base class, one kind per culprit."""


class GraphoptError(Exception):
    """Base of every error that graphopt raises on purpose; its text is one line that names the culprit."""


class ModelError(GraphoptError):
    """The model file or graph is unusable."""


class DataError(GraphoptError):
    """The user's data does not fit the model."""


class OptionError(GraphoptError):
    """An option, a recipe or a pass name is unusable."""
