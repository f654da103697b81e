"""What can be chosen and on what: symbols, the model's dataflow graph, hardware, workloads, plans, axes.

The lowest package: it imports none of the others.
"""
