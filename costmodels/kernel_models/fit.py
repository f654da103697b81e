"""Fits all kernel models to the measurements there are: `python -m costmodels.kernel_models.fit [--out FOLDER] [--links]`.

Writes `<family>.json` and `<family>.txt` for each measured family: parameters of every device, the residual's trees, error
quantiles on held-out groups and devices, domains, and the hashes of data and code that a reader checks. The same data give
the same bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from costmodels.kernel_models import features, network
from costmodels.kernel_models.domain import Domain, domain_of
from costmodels.kernel_models.exact import known_of, write_known
from costmodels.kernel_models.fitted import FOLDER, SYMBOLS, Calibration, Fit, write_fit
from costmodels.kernel_models.groups import quantiles
from costmodels.kernel_models.heldout import (
    MODELS,
    HeldOut,
    calibrations,
    fit_devices,
    fit_trees,
    leave_device_out,
    leave_groups_out,
)
from costmodels.kernel_models.operations import ATTENTION, PASSES
from costmodels.kernel_models.samples import Sample, samples
from costmodels.measurements import ROOT, Measurements, data_digest, read

# the host measurement that stands for an operator called from Python
_HOST = {"gemm": "linear", **dict.fromkeys(ATTENTION, "attention"), **{op: op for op in PASSES}, "copy": "add", "": "add"}
_BACKWARD = ("attention_forward_backward", "attention")


def fit_family(data: Measurements, family: str) -> tuple[Fit, str]:
    """(fit, the trees' text) of gemm, attention or pointwise. Raises ValueError when nothing of it was measured."""
    many = samples(data, family)
    if not many:
        raise ValueError(f"no measurements of {family} to fit")
    devices = fit_devices(many)
    text = fit_trees(many, devices)
    held = leave_groups_out(many)
    spreads = {model: _spreads(held, model) for model in MODELS}
    without = [row for device in data.devices for row in leave_device_out(many, device)]
    if without:
        spreads["transfer"] = _spreads(without, "learned")
    fit = Fit(
        family=family,
        data=data_digest(family, data.root),
        code=features.code_hash(),
        devices=_with_host(calibrations(many, devices), host_times(data)),
        spreads=spreads,
        domains=_domains(many),
        trees=None,
    )
    return fit, text


def fit_collectives(data: Measurements) -> Fit | None:
    """The fit of collectives between two ranks; None when nobody measured them."""
    many = network.two_ranks(samples(data, "collectives"))
    if not many:
        return None
    eager = network.two_ranks(samples(data, "collectives", "eager"))
    spreads = {
        model: quantiles(error, group) for model, (error, group) in network.errors(network.leave_sizes_out(many)).items()
    }
    host, off = network.host_seconds(eager)
    spreads["host"] = {"": off}
    return Fit(
        family="collectives",
        data=data_digest("collectives", data.root),
        code=features.code_hash(),
        devices=network.measured_links(many, host, SYMBOLS),
        spreads=spreads,
        domains={},
        trees=None,
        curves=network.fit_curves(many),
    )


def host_times(data: Measurements) -> dict[str, dict[str, float]]:
    """Seconds Python needs to issue each operator, by device and operator, and '' for any other."""
    found: dict[str, dict[str, float]] = {}
    for rows in data.of("host"):
        seconds = dict(zip(rows.columns["op"].tolist(), rows.time.tolist(), strict=True))
        found[rows.device] = {op: seconds[name] for op, name in _HOST.items() if name in seconds}
        if all(name in seconds for name in _BACKWARD):
            found[rows.device]["attention_backward"] = seconds[_BACKWARD[0]] - seconds[_BACKWARD[1]]
    return found


def _with_host(devices: Mapping[str, Calibration], host: Mapping[str, Mapping[str, float]]) -> dict[str, Calibration]:
    return {name: replace(device, host=host.get(name, {})) for name, device in devices.items()}


def _spreads(held: Sequence[HeldOut], model: str) -> dict[str, float]:
    """Error quantiles by group of like kernels, all devices together."""
    error = np.concatenate([np.abs(rows.error(model)) for rows in held])
    return quantiles(error, np.concatenate([rows.group for rows in held]))


def _domains(many: Sequence[Sample]) -> dict[str, Domain]:
    """The taught region of every operator variant, over all devices."""
    found = {}
    for kind in sorted({kind for sample in many for kind in sample.variant.tolist()}):
        some = [sample.take(sample.variant == kind) for sample in many if kind in sample.variant]
        at = {name: np.concatenate([sample.at[name] for sample in some]) for name in some[0].at}
        found[kind] = domain_of(some[0].op, at, np.concatenate([sample.group for sample in some]))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Fit kernel models to measurements.")
    parser.add_argument("--measurements", type=Path, default=ROOT, help="folder of measured devices")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write the fits to")
    parser.add_argument("--links", action="store_true", help="only print the link constants that the collectives give")
    chosen = parser.parse_args(arguments)
    data = read(chosen.measurements)
    if chosen.links:
        print(network.fit_link(network.two_ranks(samples(data, "collectives"))))
        return
    for family in ("gemm", "attention", "pointwise"):
        if data.of(family):
            fit, text = fit_family(data, family)
            write_fit(fit, text, chosen.out)
            write_known(known_of(samples(data, family)), family, data.root, chosen.out)
            within = np.expm1(fit.spreads["learned"][""])
            print(f"{family}: {len(fit.devices)} devices, 90 % of held-out errors within {within:.1%}")
    links = fit_collectives(data)
    if links is not None:
        write_fit(links, None, chosen.out)
        print(f"collectives: 90 % of held-out errors within {np.expm1(links.spreads['learned']['']):.1%}")


if __name__ == "__main__":
    main()
