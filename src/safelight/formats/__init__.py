"""Files to NumPy arrays and back, nothing else: one module or package per family of formats.

A reader returns what it found and what it had to decide as data (``notices``); it never logs. The libraries that a
format needs are imported when a file of it is opened; a missing one is a ``UsageError`` that names the extra.
"""
