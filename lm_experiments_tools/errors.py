"""Errors that the user can mend: shown as one line, without a traceback; the process exits with code 2."""


class UserError(ValueError):
    """A wrong option, path, file or pair of options. The message says what to do."""
