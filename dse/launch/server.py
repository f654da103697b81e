"""The servers of a serving plan: one aggregated, or one of each pool when prefill and decode stand apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dse.launch.registry import CannotLaunch
from spaces.serving_space import PREFILL

ROLES = ("prefill", "decode")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One engine's plan, how many such engines there are, and its role ("" when it does both)."""

    role: str
    replicas: int
    devices: int
    plan: Mapping[str, Any]


def servers(
    plan: Mapping[str, Any], framework: str, caches: Mapping[str, Any], *, offloads: bool = False, drafts: bool = False
) -> tuple[Server, ...]:
    """The servers a plan is made of. Raises CannotLaunch for what the framework cannot do: formats of its cache, weights that
    it does not leave on the host (`offloads`), drafts (`drafts`)."""
    split = plan.get("mode") == "disaggregated"
    found = tuple(_server(plan, role) for role in (ROLES if split else ("",)))
    for server in found:
        if server.plan["kv_precision"] not in caches:
            raise CannotLaunch(f"{framework} keeps no {server.plan['kv_precision']} cache; it has {', '.join(caches)}")
        if server.plan.get("kv_offload"):
            raise CannotLaunch(f"{framework} fetches no running request's cache from the host: take a plan without kv_offload")
        if server.plan.get("expert_offload"):
            raise CannotLaunch(f"{framework} keeps no experts apart in host memory: take a plan without expert_offload")
        if server.plan.get("weight_offload") and not offloads:
            raise CannotLaunch(f"{framework} keeps no weights in host memory: take a plan without weight_offload")
        if server.plan.get("speculation") and not drafts:
            raise CannotLaunch(f"no draft can be named for {framework} here: take a plan without speculation")
        if server.plan.get("preemption") == "swap":
            raise CannotLaunch(f"{framework} computes preempted requests again: take a plan with preemption: recompute")
    return found


def _server(plan: Mapping[str, Any], role: str) -> Server:
    """The choices of one pool: those of the prefill pool begin with `prefill.`, the others are the decode pool's."""
    own = {name: value for name, value in plan.items() if "." not in name}
    if role == "prefill":
        own |= {name.removeprefix(PREFILL): value for name, value in plan.items() if name.startswith(PREFILL)}
    engine = own["pipeline"] * max(own["tensor"] * own["attention_data"], own["expert_tensor"] * own["expert"])
    return Server(role=role, replicas=own["data"], devices=engine, plan=own)


def replicas(server: Server, command: str) -> str:
    """The command with what it is for: how many of it to start, on how many devices each."""
    role = f"{server.role} " if server.role else ""
    count = "one server" if server.replicas == 1 else f"{server.replicas} servers behind a router"
    return f"# {role}pool: {count}, {server.devices} devices each\n{command}".replace("#  ", "# ")
