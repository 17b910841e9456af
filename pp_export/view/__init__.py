"""What people see: tables on stdout, progress on stderr (bars on a terminal, plain lines elsewhere).

`text` says sizes and opens the console, `tables` shows a report once, `progress` shows an export while it
runs, `pages` draws reports, each with its data in it, and `html` writes them. A report makes its own JSON,
which `printing` prints; nothing here decides, computes or keeps anything else that a machine would read.

Imports types of everything below it; imported by the doors (`api`, `cli`) only, and late, since rich is slow
to import.
"""
