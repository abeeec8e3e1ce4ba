"""The models of each job type, their layers and encoders."""
