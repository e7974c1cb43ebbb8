"""The command line: one file per command family. Commands parse and present; what they do is done elsewhere.

Heavy imports (torch takes seconds) stand inside the commands, so that ``charlm --help`` and completion answer at once.
"""
