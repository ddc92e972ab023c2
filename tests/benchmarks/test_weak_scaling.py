"""The report on devices' shares, of networks that compile in seconds."""

import dataclasses

import pytest

from benchmarks import weak_scaling

ADAPTERS = 4 * 16 * (3 * (384 + 384) + 384 + 384)  # bytes of rank 16 on one block's four maps of 384 channels, float32


class Smaller(weak_scaling.Small):
    @property
    def transformer(self):
        small = {"num_layers": 1, "sample_frames": 1, "sample_height": 8, "sample_width": 8}
        return dataclasses.replace(super().transformer, **small)


@pytest.mark.usefixtures("optax_promotion")
def test_a_video_more_for_each_device_changes_nothing_but_what_is_sent():
    one, two = (weak_scaling.measure("finetune", devices, kind=Smaller) for devices in (1, 2))
    assert one["sent_mib"] == {}
    for key in ("arguments_mib", "operations"):
        assert two[key] == pytest.approx(one[key], rel=0.02)
    assert two["temporaries_mib"] == pytest.approx(one["temporaries_mib"], rel=0.2)
    assert ADAPTERS <= sum(two["sent_mib"].values()) * weak_scaling.MIB < 2 * ADAPTERS
