"""A model as MLflow loads it: from code that is a file, with weights as safetensors."""
