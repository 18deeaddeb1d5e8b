"""The HTTP process, the workers and the stores."""
