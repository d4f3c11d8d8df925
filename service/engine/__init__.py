"""Runs one model: arena of states, scheduler, and the loop that batches steps of many sessions."""
