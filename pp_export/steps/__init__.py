"""What the story (`export.py`) calls, step by step: each takes and gives typed values, and hides how ranks
take part.

*Inputs* are everything that is known before the plan; *transfer* moves the values, *reading* in it from the
source and the *exchange* from rank to rank; *workers* are a rank's threads; a *failure* on one rank ends all.
Imports every room below; imported by `export.py`, the view and the doors.
"""
