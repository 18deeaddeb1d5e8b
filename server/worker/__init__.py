"""The worker process: one device, many resident sessions."""
