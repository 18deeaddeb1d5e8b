"""Language models with a memory of fixed size: torch only, no server."""
