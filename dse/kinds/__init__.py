"""Kinds of experiment. Each is a folder that brings its sections, its problem and space, its cost models and its words.

`registry` says what a kind is and holds them all; nothing outside a kind's folder knows what is in it.
"""
