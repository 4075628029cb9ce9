"""devices.toml: figures with a source, found by short name and by the name that torch reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.catalogue.devices import find_device, known_device, load_devices
from harness.errors import HarnessError


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("h100-sxm", "h100-sxm"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb"),
        ("nvidia l4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L40", "l40"),
        ("NVIDIA RTX A6000", "rtx-a6000"),
        ("Tesla V100-SXM2-16GB", "v100-sxm2-16gb"),
        ("Tesla V100-SXM2-32GB", "v100-sxm2-32gb"),
        ("Tesla V100-PCIE-32GB", "v100-pcie-32gb"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A10", "a10"),
        ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 3090", "rtx-3090"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 5090", "rtx-5090"),
        ("AMD Instinct MI300X OAM", "mi300x"),
    ],
)
def test_a_device_is_found_by_both_of_its_names(name: str, short: str) -> None:
    assert find_device(name, load_devices()).name == short


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100 NVL",
        "NVIDIA H200 NVL",
        "NVIDIA A10G",
        "NVIDIA A100",
        "NVIDIA L40G",
        "NVIDIA RTX 6000 Ada Generation",
        "Tesla V100S-PCIE-32GB",
        "Tesla V100-FHHL-16GB",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "AMD EPYC",
    ],
)
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
        assert device.peak_flops("fp32") == device.fp32_flops
        assert device.peak_flops("fp32", tf32=True) == device.tf32_flops
        if device.tf32_flops is None:
            assert device.peak_flops("bf16") is None or "tf32 was not read" in device.note
            continue
        assert device.fp32_flops is not None and device.fp32_flops <= device.tf32_flops
        assert device.peak_flops("bf16") == pytest.approx(2 * device.tf32_flops, rel=0.02)
    assert devices["h100-sxm"].memory_bytes == 80_000_000_000


@pytest.mark.parametrize("short", ["rtx-3090", "rtx-4090", "rtx-5090"])
def test_a_geforce_peak_is_of_accumulation_in_fp32(short: str) -> None:
    device = load_devices()[short]
    assert device.tf32_flops == device.fp32_flops
    assert device.fp32_flops is not None
    assert device.bf16_flops == pytest.approx(2 * device.fp32_flops, rel=0.01)


def test_a_device_without_bf16_and_tf32_has_no_peak_for_them() -> None:
    t4 = load_devices()["t4"]
    assert (t4.peak_flops("bf16"), t4.peak_flops("fp32", tf32=True)) == (None, None)


def test_a_peak_that_was_read_nowhere_is_none() -> None:
    v100 = load_devices()["v100-sxm2-32gb"]
    assert (v100.peak_flops("bf16"), v100.peak_flops("fp32"), v100.memory_bytes) == (None, None, 32_000_000_000)


def test_every_device_has_a_compute_capability_or_says_why_not() -> None:
    devices = load_devices()
    for device in devices.values():
        assert device.compute_capability is not None or "compute capability" in device.note
    assert {name: device.compute_capability for name, device in devices.items()} == {
        "h200": "9.0",
        "h100-sxm": "9.0",
        "h100-pcie": "9.0",
        "a100-80gb": "8.0",
        "a100-40gb": "8.0",
        "a10": "8.6",
        "l40s": "8.9",
        "l40": "8.9",
        "l4": "8.9",
        "t4": "7.5",
        "v100-pcie-16gb": "7.0",
        "v100-pcie-32gb": "7.0",
        "v100-sxm2-16gb": "7.0",
        "v100-sxm2-32gb": "7.0",
        "rtx-a6000": "8.6",
        "rtx-3090": "8.6",
        "rtx-4090": "8.9",
        "rtx-5090": "12.0",
        "mi300x": None,
        "mi300a": None,
    }


@pytest.mark.parametrize("text", ["9", "sm_90", "9.0a", "", "0.9", "9.00"])
def test_what_is_no_compute_capability_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "devices.toml"
    lines = ('[x]\nsummary = "x"\nnames = ["x"]', "fp32_flops = 1.0\nmemory_gb = 1.0", 'source = "x"')
    file.write_text("\n".join((*lines, f'compute_capability = "{text}"')))
    with pytest.raises(HarnessError, match=r"devices\.toml: \[x\].*compute_capability"):
        load_devices(file)


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


@pytest.mark.parametrize(("hip", "expected"), [(None, "9.4"), ("7.2", None)])
def test_a_runs_compute_capability_is_of_nvidia_devices_alone(
    hip: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    from harness.engine import environment

    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 4))
    assert environment._compute_capability(torch.device("cuda", 0)) == expected
