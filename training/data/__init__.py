"""Texts as token ids: where they come from, which words they have, and how they are cut into batches."""
