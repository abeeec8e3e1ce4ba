"""How much of the time that gradients travel is hidden behind the backward pass that goes on meanwhile."""

from __future__ import annotations

from parallel.engine.reducer import IN_FLIGHT


def exposed_seconds(backward: list[float], sending: list[float]) -> float:
    """What a backward pass takes longer because its gradients are sent.

    Stages are done from the last to the first, and sent one after the other in that order; a stage whose turn it is
    waits while `IN_FLIGHT` others are under way, as it has no buffer.

    Args:
        backward, sending: seconds of each stage, in the order of the forward pass.
    """
    now = 0.0
    arrivals: list[float] = []
    for compute, send in zip(reversed(backward), reversed(sending), strict=True):
        now += compute
        if len(arrivals) >= IN_FLIGHT:
            now = max(now, arrivals[-IN_FLIGHT])
        arrivals.append(max(now, arrivals[-1] if arrivals else 0.0) + send)
    return max(now, arrivals[-1] if arrivals else 0.0) - sum(backward)
