"""The weekend planner: a recurrent network whose weights are known."""
