"""`python -m bench.demo`: a session outlives two crashes of its server and still knows what it read."""
