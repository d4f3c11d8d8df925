"""Where sessions are kept: the log of their inputs since the last snapshot, and the last reply."""
