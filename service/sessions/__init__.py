"""Sessions: who they are, how far they have come, where their state is. Ties engine and journal together."""
