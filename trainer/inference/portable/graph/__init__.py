"""A model as one graph of torch: tensors of a batch in, answers out, and none of this code needed to run it."""
