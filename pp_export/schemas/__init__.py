"""JSON Schemas (draft 2020-12) of everything that pp_export writes or prints as JSON; data, no code.

Each schema is complete in itself. A value says in `schema_version` which one it follows: a new key, or
another meaning of one, is a new version. `importlib.resources.files("pp_export.schemas")` finds them.
"""
