"""The two wheels: what is in them, and that nothing of a user's program gets in their way or they in its."""
