"""How the service reaches workers."""
