"""The face: experiment files, the engine that runs them, run folders, reports, the command line.

Imports `search`, `costmodels` and `spaces`; nothing imports `dse`.
"""
