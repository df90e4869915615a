"""What a GPU would notice, on a machine without one: waits of the host, and tensors of two devices."""

import os

import pytest
import torch
from conftest import MakeRecognizer
from torch import Tensor

from sec4sr_pl.attacks import NES, PGD
from sec4sr_pl.attacks import source as sources
from sec4sr_pl.attacks.memory import PeakMemory

if not os.environ.get("SEC4SR_PRETEND"):
    pytest.skip("SEC4SR_PRETEND is not set: the pretend device wants a process of its own", allow_module_level=True)

import pretend_device

Speech = tuple[Tensor, Tensor]


def reads_of(steps: int, make_recognizer: MakeRecognizer, speech: Speech, measure: bool) -> list[str]:
    """What the host reads while PGD attacks two padded utterances."""
    waveforms, lengths = (tensor[:2].to("pretend") for tensor in speech)
    labels = torch.tensor([0, 1]).to("pretend")
    recognizer = make_recognizer().to("pretend")
    pretend_device.reads.clear()
    PGD(steps=steps)(recognizer, waveforms, labels, lengths, measure=measure)
    return list(pretend_device.reads)


@pytest.mark.parametrize("measure", [True, False])
def test_the_host_reads_as_often_in_six_steps_as_in_two(
    make_recognizer: MakeRecognizer, speech: Speech, measure: bool
) -> None:
    few, many = (reads_of(steps, make_recognizer, speech, measure) for steps in (2, 6))
    assert few == many
    assert bool(few) is measure  # in training nobody waits at all


def test_the_device_is_one_that_mixes_with_no_other() -> None:
    ours = torch.ones(3).to("pretend")
    with pytest.raises(RuntimeError, match="on the same device"):
        ours + torch.ones(3)
    with pytest.raises(RuntimeError, match="device type for generator"):
        torch.rand(3, generator=torch.Generator(), device="pretend")
    pretend_device.reads.clear()
    assert float((2.0 * ours).sum()) == 6.0 and pretend_device.reads == ["_local_scalar_dense"]


def test_queries_at_a_time_are_bounded_by_the_memory_that_the_model_takes(
    make_recognizer: MakeRecognizer, speech: Speech, monkeypatch: pytest.MonkeyPatch
) -> None:
    waveforms = speech[0][:2].to("pretend")
    labels = torch.tensor([0, 1]).to("pretend")
    recognizer = make_recognizer().to("pretend")
    asked: list[int] = []
    recognizer.register_forward_pre_hook(lambda module, inputs: asked.append(len(inputs[0])))
    with torch.no_grad(), PeakMemory() as alone:
        recognizer(waveforms)
    for copies in (1000, 6, 2):
        monkeypatch.setattr(sources, "QUERIED_BYTES", (copies + 0.5) * alone.peak)
        asked.clear()
        PGD(steps=2, source=NES(20))(recognizer, waveforms, labels)
        assert max(asked) == 2 * min(copies, 20), asked
