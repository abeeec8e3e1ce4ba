"""An exported model with all that records need to reach it, and no data set, run or cluster."""
