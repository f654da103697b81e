"""What a fit leaves on disk: parameters of every measured device, the residual's trees, error quantiles, domains, hashes.

`costmodels/data/learned/<family>.json` beside `<family>.txt`. A fit carries the hash of the data and of the code it was made
with; one whose hashes differ from those at hand is not used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from costmodels.kernel_models import features
from costmodels.kernel_models.domain import Domain, from_json
from costmodels.kernel_models.forms import Parameters
from costmodels.kernel_models.operations import DeviceSymbols
from costmodels.kernel_models.trees import Trees, read_trees
from costmodels.measurements import ROOT, data_digest

FOLDER = Path(__file__).parent.parent / "data" / "learned"
"""Where the project's own fits are."""
SCHEMA = 1
SYMBOLS = (
    "device.matrix_flops.bf16",
    "device.matrix_flops.fp16",
    "device.matrix_flops.fp8",
    "device.matrix_flops.tf32",
    "device.matrix_flops.int8",
    "device.matrix_flops.fp4",
    "device.memory_bandwidth",
    "device.cache_bytes",
    "device.compute_units",
    "device.power",
    "device.scale_up_bandwidth",
    "device.nic_bandwidth",
)
"""The datasheet figures that kernels depend on."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """One measured device: its datasheet's figures, the parameters of each operator variant, host seconds by operator."""

    symbols: DeviceSymbols
    variants: Mapping[str, Parameters]
    host: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """A family's fit.

    `spreads[model][group]` is the 90 % quantile of |log error| on held-out groups, for models `roofline`, `calibrated`,
    `learned`, `transfer`; the group '' is the whole family. `trees` is None where no residual is kept. `curves` holds the
    size curves of collectives: kind -> ((log2 bytes a rank, log residual), …).
    """

    family: str
    data: str
    code: str
    devices: Mapping[str, Calibration]
    spreads: Mapping[str, Mapping[str, float]]
    domains: Mapping[str, Domain]
    trees: Trees | None
    curves: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)

    @property
    def variants(self) -> frozenset[str]:
        """Every operator variant that some device was measured at."""
        return frozenset(kind for device in self.devices.values() for kind in device.variants)


def write_fit(fit: Fit, text: str | None, folder: Path = FOLDER) -> None:
    """Write `<family>.json`, and `<family>.txt` with the trees' text where there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "schema": SCHEMA,
        "data": fit.data,
        "code": fit.code,
        "devices": {
            name: {
                "symbols": dict(device.symbols),
                "variants": {kind: dict(values) for kind, values in device.variants.items()},
                "host": {op: round(seconds, 8) for op, seconds in device.host.items()},
            }
            for name, device in fit.devices.items()
        },
        "spreads": {model: {group: round(v, 4) for group, v in groups.items()} for model, groups in fit.spreads.items()},
        "domains": {kind: domain.to_json() for kind, domain in fit.domains.items()},
        "curves": {kind: [list(point) for point in points] for kind, points in fit.curves.items()},
        "residual": text is not None,
    }
    (folder / f"{fit.family}.json").write_text(_compact(facts) + "\n", encoding="utf-8")
    if text is not None:
        (folder / f"{fit.family}.txt").write_text(text, encoding="utf-8")


def _compact(facts: Mapping[str, object]) -> str:
    """Indented to three levels, so that a change of one device shows as its own lines."""
    lines = []
    for key, value in facts.items():
        if isinstance(value, Mapping) and value:
            inner = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry, sort_keys=True)}" for name, entry in value.items())
            lines.append(f" {json.dumps(key)}: {{\n{inner}\n }}")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}"


@cache
def read_fit(family: str, folder: Path = FOLDER, root: Path = ROOT) -> Fit | None:
    """The fit of a family, or None when there is none or its parameters are of another schema.

    Trees made from other data or by other code than those at hand are left out (`trees` is None): the caller then answers
    with the calibrated form, at lower evidence.
    """
    path = folder / f"{family}.json"
    if not path.exists():
        return None
    facts = json.loads(path.read_text(encoding="utf-8"))
    if facts.get("schema") != SCHEMA:
        return None
    fresh = facts["data"] == data_digest(family, root) and facts["code"] == features.code_hash()
    trees = read_trees((folder / f"{family}.txt").read_text(encoding="utf-8")) if fresh and facts["residual"] else None
    return Fit(
        family=family,
        data=facts["data"],
        code=facts["code"],
        devices={name: Calibration(**entry) for name, entry in facts["devices"].items()},
        spreads=facts["spreads"],
        domains={kind: from_json(entry) for kind, entry in facts["domains"].items()},
        trees=trees,
        curves={kind: tuple((float(x), float(y)) for x, y in points) for kind, points in facts["curves"].items()},
    )


@cache
def fitted_devices(folder: Path = FOLDER) -> tuple[str, ...]:
    """Names of the devices that products were fitted on, sorted; nothing else is read."""
    path = folder / "gemm.json"
    return tuple(sorted(json.loads(path.read_text(encoding="utf-8"))["devices"])) if path.exists() else ()


def is_current(fit: Fit, root: Path = ROOT) -> bool:
    """Whether the fit was made from the data and by the code at hand."""
    return fit.data == data_digest(fit.family, root) and fit.code == features.code_hash()
