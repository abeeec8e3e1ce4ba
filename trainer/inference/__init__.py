"""A trained model without engine or process group: exports, predictions, explanations."""
