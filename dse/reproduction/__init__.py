"""Claims of published papers, each a file with what was published, what the engine predicts, and a verdict.

`claim` reads the files, `cases` are the engine's answers that a prediction is made of, `verdict` holds them against the claim.
"""
