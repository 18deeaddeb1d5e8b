"""Errors of the models package.

ModelsError
├── ConfigError        a configuration that cannot work; the text says which value to change
├── CheckpointError    a checkpoint that cannot be found, read, or does not fit the architecture
├── TokenizerError     a tokenizer or chat template that is missing or cannot be applied
└── StateError         saved state that is truncated, altered, or of another model, memory or version
"""


class ModelsError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(ModelsError):
    """A configuration that cannot work."""


class CheckpointError(ModelsError):
    """A checkpoint that cannot be found or read, or whose tensors do not fit."""


class TokenizerError(ModelsError):
    """A tokenizer or chat template that is missing or cannot be applied."""


class StateError(ModelsError):
    """Saved state that must not be loaded: truncated, altered, or made by something else."""
