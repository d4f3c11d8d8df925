"""Sentiment: labels of a text, of all of it at once or after every word."""
