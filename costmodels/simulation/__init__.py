"""Serving, simulated step by step: arrivals, continuous batching, paged KV memory, preemption, routing, disaggregation.

`simulate(tables, engine, requests, limits) -> Outcome` runs one engine or several replicas; `simulate_disaggregated` a prefill
pool and a decode pool. Step times come from `costmodels.step_tables`, as in the closed form. The first run compiles it.

    from costmodels.simulation import Limits, simulate
    from spaces.workload import Requests

    requests = Requests(arrival=np.zeros(640), prompt=np.full(640, 1000), output=np.full(640, 500), concurrency=64)
    outcome = simulate(tables, row, requests, Limits(max_batch=256, max_tokens=8192, kv_blocks=30_000))
    outcome.mean("ttft"), outcome.percentile("tpot", 99), outcome.token_throughput(steady=True), outcome.counts
"""

from costmodels.simulation.limits import KvLink, Limits, Pool
from costmodels.simulation.outcome import Outcome, Slo
from costmodels.simulation.simulator import simulate, simulate_disaggregated

__all__ = ["KvLink", "Limits", "Outcome", "Pool", "Slo", "simulate", "simulate_disaggregated"]
