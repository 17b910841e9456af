"""The one door through which anything is written: `calls` asks the system, `files` and `folders` make what is
needed, `shared_file` one file of several ranks; `publish` and `beside` give the whole its name, `litter` sees
to what killed runs have left, `owner` says whose it is.

A name is final only when everything under it is on disk. Other rooms read files on their own, but none makes,
renames or removes one without this room.

Imports `core` alone; every room above may import it.
"""
