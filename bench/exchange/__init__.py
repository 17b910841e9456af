"""What the export's exchange gets out of a wire: `python -m bench.exchange`.

Both ways send the same bytes between the same ranks in the same rounds. *Bare* is torch's Gloo and nothing
else: isend and irecv from memory that is taken once, one message per pair of ranks and round. *Export* is
what an export does: the plan's slices read by the reader's thread (from a source that costs nearly nothing),
exchanged by the exchanger's, and taken bucket by bucket. Nothing is pasted, hashed or written.
"""
