"""Measurements and the demo: commands that run against real server processes."""
