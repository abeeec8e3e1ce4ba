"""Numbers from predictions; nothing here knows a model."""
