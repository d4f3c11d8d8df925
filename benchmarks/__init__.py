"""What the service costs over the bare model, measured in one run, with every answer compared."""
