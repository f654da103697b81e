"""How long a kernel takes: three models behind one protocol, and what it takes to fit them.

`roofline` needs a datasheet, `calibrated` fits a few physical parameters to a measured device, `learned` adds a boosted
residual. All answer with an interval from errors on held-out shapes and say what they rest on.
"""
