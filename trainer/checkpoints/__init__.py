"""Topology-free checkpoints: written while training goes on, found, verified, restored, handed on as adapters."""
