"""The client for asyncio: the same verbs, awaited."""
