"""What a machine that may not exist yet takes and costs: die area, power, price, carbon, and how its arrays run operators.

Functions of symbols (`chip.*`, `device.*`), scalars or columns alike; constants are data with sources
(costmodels/data/machines).
"""
