"""Reports of a run: `markdown` for text, `html` for one offline page with drawings made by hand in SVG.

Each takes a `Run` and returns text; neither computes a figure of its own.
"""
