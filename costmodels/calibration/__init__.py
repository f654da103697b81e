"""Measuring a machine: kernels, copies, host, collectives, training and serving steps, as rows other models are fitted to.

Needs PyTorch, numpy and the standard library alone: `python -m costmodels.calibration.measure --out DIR`.
"""
