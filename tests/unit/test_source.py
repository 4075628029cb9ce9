"""The checksum of the harness's own source is of what it says, not of how it is laid out."""

from __future__ import annotations

from pathlib import Path

from harness.source import checksum_of


def laid_out(harness: Path, methods: Path, suites: Path, published: Path) -> dict[str, Path]:
    texts = {harness / "a.py": "a", methods / "m.py": "m", suites / "s.toml": "s", published / "__init__.py": "p"}
    for file, text in texts.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return {"harness": harness, "harness.methods": methods, "harness.suites": suites}


def test_a_checkout_and_an_installation_have_one_checksum(tmp_path: Path) -> None:
    checkout, site = tmp_path / "checkout", tmp_path / "site" / "harness"
    apart = laid_out(checkout / "harness", checkout / "methods", checkout / "suites", checkout / "results" / "paper")
    inside = laid_out(site, site / "methods", site / "suites", site / "published")
    assert checksum_of(apart) == checksum_of(inside)
    (site / "methods" / "m.py").write_text("another")
    assert checksum_of(apart) != checksum_of(inside)
