"""What it costs to park a session in Redis and to take it up again, at several lengths of its history, and what reading the same
text again would cost: `python -m bench.park`.
"""
