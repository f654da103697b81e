"""The shape of experiment files: what a field, a section and a whole file may hold, checked by pydantic.

`fields` reads single values, `sections` holds what every kind of experiment shares, `checking` turns errors into words.
"""
