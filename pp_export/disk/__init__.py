"""The one door through which anything is written: `files` for single files, `shared_file` for one that
several ranks write, `publish` for the whole folder.

A name is final only when everything under it is on disk. Other rooms read files on their own, but none makes,
renames or removes one without this room.

Imports `core` alone; every room above may import it.
"""
