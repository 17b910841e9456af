"""Reports as HTML pages, each of which needs nothing but itself.

A *page* is data and what draws it (`assets/`); its data is a list of *sections*, each of a kind that the
page's scripts have a function for: facts, table, bars, lines, timeline, verdict. A module here makes the
sections of one report; `document` makes a page of them. To show something else, make another section.

Imported by `view.html`, which says where pages are written.
"""
