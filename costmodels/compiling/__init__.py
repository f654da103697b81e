"""Loops written in a small part of Python, compiled through LLVM: the simulator's events, the passes of a schedule.

`machine_code.compiled(function)` makes one callable; `translation` says what that part of Python is.
"""
