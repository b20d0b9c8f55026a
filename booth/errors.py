"""The one exception that is meant for the person at the keyboard."""


class UserError(ValueError):
    """Something the user can mend: one line that gives the value, the rule and the fix.

    The command line prints it without a traceback and exits with code 2.
    """
