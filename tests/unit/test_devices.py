"""devices.toml: figures with a source, found by short name and by the name that torch reports."""

from __future__ import annotations

import pytest

from harness.devices import find_device, known_device, load_devices
from harness.errors import HarnessError


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("h100-sxm", "h100-sxm"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("nvidia l4", "l4"),
        ("AMD Instinct MI300X OAM", "mi300x"),
    ],
)
def test_a_device_is_found_by_both_of_its_names(name: str, short: str) -> None:
    assert find_device(name, load_devices()).name == short


@pytest.mark.parametrize("name", ["NVIDIA L40S", "NVIDIA H100 PCIe", "NVIDIA GeForce RTX 4090", "AMD EPYC"])
def test_a_device_is_never_taken_for_another(name: str) -> None:
    assert known_device(name, load_devices()) is None


def test_an_unknown_name_is_answered_with_a_near_miss() -> None:
    with pytest.raises(HarnessError, match=r"there is no device 'h100-sxn' in devices.toml; did you mean 'h100-sxm'"):
        find_device("h100-sxn", load_devices())


def test_every_figure_has_a_source_and_none_counts_sparsity() -> None:
    devices = load_devices()
    assert devices
    for device in devices.values():
        assert device.source
        assert device.tf32_flops is not None
        assert device.fp32_flops < device.tf32_flops
        assert device.peak_flops("fp32") == device.fp32_flops
        assert device.peak_flops("fp32", tf32=True) == device.tf32_flops
        assert device.peak_flops("bf16") == pytest.approx(2 * device.tf32_flops, rel=0.02)
    assert devices["h100-sxm"].memory_bytes == 80_000_000_000


def test_no_two_devices_share_a_name() -> None:
    devices = load_devices()
    for device in devices.values():
        for name in device.names:
            assert [other.name for other in devices.values() if other.is_called(name.rstrip("*"))] == [device.name]


def test_the_figures_are_those_of_the_table_that_they_were_read_in() -> None:
    torch = pytest.importorskip("torch")
    info = pytest.importorskip("torch._inductor.analysis.device_info")
    for short, name in (("h100-sxm", "NVIDIA H100"), ("mi300x", "AMD MI300X"), ("mi300a", "AMD MI300A")):
        found = info.lookup_device_info(name)
        factor = getattr(found, "tops_sparsity_factor", 1)
        device = load_devices()[short]
        assert device.bf16_flops == found.tops[torch.bfloat16] * 1e12 / factor
        assert device.tf32_flops == found.tops["torch.tf32"] * 1e12 / factor
        assert device.fp32_flops == found.tops[torch.float32] * 1e12
        assert device.memory_gb == found.dram_gb
