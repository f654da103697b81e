"""What a design point costs: kernels, collectives, memory, pipeline schedules, training steps, energy, price.

Every model is a pure function from columns of design points to metrics; facts live in `costmodels/data`.
"""
