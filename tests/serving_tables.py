"""Step-time tables of an imagined engine, for tests of what reads them."""

import numpy as np

from costmodels.step_tables import StepTables


def imagined_tables(
    *,
    stages: int = 1,
    slowest_share: float = 1.0,
    launch: float = 8e-3,
    graph_sequences: float = 64.0,
    fetch: float = 0.0,
    seed: int = 0,
    engines: int = 2,
) -> StepTables:
    """Tables that grow in every direction, uneven enough that a wrong cell or axis shows."""
    generator = np.random.default_rng(seed)

    def rising(*shape: int) -> np.ndarray:
        table = generator.uniform(0.2, 1.0, (engines, *shape))
        for axis in range(1, table.ndim):
            table = np.cumsum(table, axis=axis)
        return table * 1e-3

    tokens = np.array([1.0, 8.0, 64.0, 256.0, 1024.0, 8192.0])
    sequences = np.array([1.0, 16.0, 256.0])
    requests = np.array([1.0, 4.0, 32.0, 256.0])
    decode_kv = np.array([0.0, 100.0, 4e3, 1e5, 1e6])
    queries = np.array([1.0, 32.0, 512.0, 8192.0])
    pairs = np.array([0.0, 1e3, 1e5, 1e8])
    return StepTables(
        tokens=tokens,
        token_time=rising(6),
        sequences=sequences,
        sequence_time=rising(3),
        requests=requests,
        decode_kv=decode_kv,
        decode_time=rising(4, 5),
        draft_time=np.zeros((engines, 4, 5)),
        queries=queries,
        pairs=pairs,
        prefill_time=rising(4, 4),
        host=np.full(engines, 1e-3),
        host_per_sequence=np.full(engines, 1e-5),
        host_overlap=np.full(engines, 0.5),
        launch=np.full(engines, launch),
        graph_sequences=np.full(engines, graph_sequences),
        fetch=np.full(engines, fetch),
        fetch_overlap=np.full(engines, 0.7),
        stages=np.full(engines, float(stages)),
        slowest_share=np.full(engines, slowest_share),
    )


def constant_tables(step: float) -> StepTables:
    """Every step takes `step` seconds."""
    one, zero = np.ones(1), np.zeros(1)
    return StepTables(
        tokens=one,
        token_time=np.full((1, 1), step),
        sequences=one,
        sequence_time=np.zeros((1, 1)),
        requests=one,
        decode_kv=zero,
        decode_time=np.zeros((1, 1, 1)),
        draft_time=np.zeros((1, 1, 1)),
        queries=one,
        pairs=zero,
        prefill_time=np.zeros((1, 1, 1)),
        host=zero,
        host_per_sequence=zero,
        host_overlap=zero,
        launch=zero,
        graph_sequences=one,
        fetch=zero,
        fetch_overlap=zero,
        stages=one,
        slowest_share=one,
    )
