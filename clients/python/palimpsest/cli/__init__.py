"""The command `palimpsest`: ingest, chat, ask, sessions."""

from palimpsest.cli.app import main

__all__ = ["main"]
