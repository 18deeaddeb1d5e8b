"""Teaching a model to use its memory: tasks, training, evaluation beside controls."""
