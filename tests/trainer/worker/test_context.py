"""What launchers tell a worker, and signals as a wish instead of an end."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from trainer.worker.context import Context, SingleContext, StopOnSignal, TorchrunContext


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_a_wish_and_the_handlers_come_back(number, capfd):
    before = signal.getsignal(number)
    with StopOnSignal() as stop:
        context = SingleContext(device="cpu", stop=stop)
        assert not context.should_stop()
        os.kill(os.getpid(), number)
        assert context.should_stop() and stop.received == number
        assert signal.getsignal(number) == before  # a second one would act as usual
    assert signal.getsignal(number) == before
    assert "writing a checkpoint" in capfd.readouterr().err


def test_while_nobody_could_look_at_the_wish_a_signal_ends():
    with StopOnSignal(gentle=False), pytest.raises(KeyboardInterrupt) as leaving:
        os.kill(os.getpid(), signal.SIGTERM)
    assert leaving.value.args == (signal.SIGTERM,)


def test_torchrun_describes_the_group_in_the_environment():
    context = TorchrunContext(environ={"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "0"})
    assert (context.rank, context.world, context.local_rank) == (3, 4, 0)
    assert isinstance(context, Context) and isinstance(context.device, torch.device)
    with pytest.raises(ValueError, match="WORLD_SIZE, LOCAL_RANK not set: start workers with `torchrun"):
        TorchrunContext(environ={"RANK": "0"})
