"""The words that all rooms share, and nothing that waits or touches a disk: values and pure functions.

A *box* is a rectangular part of a tensor, a *slice* a box of a stored tensor without its values, a *view*
elements of a tensor in some order; a *digest* is a value, a checksum the act. Every error a user can meet
is in one tree. Imports nothing of the package; every room may import it, and `verification` nothing else.
"""
