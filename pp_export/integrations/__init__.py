"""What training frameworks call at save time, in the shapes in which they call it; see docs/integrations.

A *bridge* is the object that a framework keeps to save Hugging Face weights; ours takes the same calls.
Frameworks are never imported: their signatures are ours too, and a test binds the calls that were recorded
from their sources.

Imports `api` and below; nothing imports it.
"""
