"""How to look: exact search with a certificate, fronts, and where the work runs.

Knows spaces and cost models by their protocols alone.
"""
