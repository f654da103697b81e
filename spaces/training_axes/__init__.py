"""The axes of the training space, each with its structural rules.

`scope` is what they are built from, `degrees` the mesh, `stages` the pipeline, `shards` what a device keeps.
"""
