"""How long an export takes and how much memory it needs, beside what it replaces: run `python -m bench`."""
