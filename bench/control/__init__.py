"""What ranks tell each other costs: steps, a look at all progress, and the end, up to 16,384 ranks.

A world of many ranks is a circle of the first ranks of all blocks, and a circle in each block; blocks have
stores of their own and don't meet. So the largest world is measured as those two circles, each with all its
members as threads with connections of their own to a real store, one after the other; what is the same for
all blocks is measured in one. Progress of all ranks is posted and read in full.
"""
