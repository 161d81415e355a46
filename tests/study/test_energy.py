"""Counters of energy, on folders and a library that look like a machine's."""

import sys
import types

import pytest

from moe_jax.study.energy import energy_counter


def write_zone(folder, name, microjoules, most=1_000_000):
    zone = folder / name
    zone.mkdir(parents=True, exist_ok=True)
    (zone / "energy_uj").write_text(f"{microjoules}\n")
    (zone / "max_energy_range_uj").write_text(f"{most}\n")


def test_packages_are_added_and_their_parts_are_not(tmp_path):
    write_zone(tmp_path, "intel-rapl:0", 100)
    write_zone(tmp_path, "intel-rapl:1", 200)
    write_zone(tmp_path, "intel-rapl:0:0", 100)
    counter = energy_counter("cpu", tmp_path)
    before = counter.joules()
    for name, now in (("intel-rapl:0", 500_100), ("intel-rapl:1", 250_200), ("intel-rapl:0:0", 900_000)):
        write_zone(tmp_path, name, now)
    assert counter.joules() - before == pytest.approx(0.75)


def test_a_package_that_begins_anew_goes_on(tmp_path):
    write_zone(tmp_path, "intel-rapl:0", 999_990)
    counter = energy_counter("cpu", tmp_path)
    before = counter.joules()
    write_zone(tmp_path, "intel-rapl:0", 9)
    # From 999,990 to 1,000,000 and one more to 0.
    assert counter.joules() - before == pytest.approx(20e-6)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_a_machine_that_does_not_count_has_no_counter(tmp_path, platform):
    assert energy_counter(platform, tmp_path / "none") is None
    assert energy_counter(platform, tmp_path) is None


def test_a_counter_that_may_not_be_read_is_none(tmp_path):
    write_zone(tmp_path, "intel-rapl:0", 5)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert energy_counter("cpu", tmp_path) is None


def fake_nvml(millijoules):
    class NVMLError(Exception):
        pass

    def read(device):
        if millijoules[device] is None:
            raise NVMLError
        return millijoules[device]

    return types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: len(millijoules),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=read,
    )


def test_gpus_are_added(monkeypatch):
    millijoules = [1000, 2000]
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(millijoules))
    counter = energy_counter("gpu")
    before = counter.joules()
    millijoules[:] = [1500, 4000]
    assert counter.joules() - before == pytest.approx(2.5)


@pytest.mark.parametrize("library", [None, fake_nvml([None]), fake_nvml([])])
def test_without_the_library_or_a_gpu_that_counts_there_is_none(monkeypatch, library):
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert energy_counter("gpu") is None
