"""What the data of all tasks share: how public files are fetched, and which rows make a batch."""
