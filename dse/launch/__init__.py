"""Launch files: the command line or configuration that starts a chosen plan in a real framework, one framework a file.

`registry` names them all; each module turns a plan into text and computes no figure.
"""
