"""Durable homes of sessions."""
