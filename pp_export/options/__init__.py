"""What a user can ask for: frozen dataclasses, from which flags, job keys, keywords and docs are made.

Three kinds by purpose: *what* the result is, *where* it comes from, *how* it is made; a function takes the
narrowest kind that tells it enough. Imports `core`; imported by `steps`, `export.py` and the doors.
"""
