"""The two errors a person meets: what they gave was wrong (exit 2), or what they need is not there (exit 1)."""


class InputError(Exception):
    """Bad input. The message is one line: what is wrong, in which file or setting, and what to do."""


class NotReady(Exception):
    """Something this step needs does not exist yet. The message is one line and names the command that makes it."""
