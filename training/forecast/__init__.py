"""Forecasts of columns of numbers: mean and quantiles of the next steps after every observation."""
