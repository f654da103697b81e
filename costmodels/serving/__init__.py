"""Serving: what a step of prefill and decode costs on a replica, what fits in its memory, and the steady state that follows.

Step times become the tables of costmodels.step_tables, which the closed form here and the simulator both read.
"""
