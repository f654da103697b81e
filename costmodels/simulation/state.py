"""What the event loop knows: one block of 8-byte words, seen as integers `m` and as floats `f`.

Every record is a run of words, and known by the index of its first: `m[r + KEY]` is the key of request r, `f[r + FIRST]` the
time of its first token. Index 0 is nobody. One block instead of a structure of arrays, because that is what makes the loop
small to compile and each event touch few cache lines.

Words: a *lane* is an attention-data-parallel rank of an engine: it has a KV pool and a waiting queue. A *cohort* is one of the
batches an engine keeps in flight, as many as it has pipeline stages; a *cell* is a cohort's part on one lane. The requests of
a cell decode in lock step, so a counter of tokens per cell stands for all of them: a request that joins at counter g with n
tokens to go ends when the counter reaches g + n, and needs a KV block whenever the counter has the right residue.
"""

from __future__ import annotations

# States of a request: not there yet, queued for prefill, in prefill, in decode, queued with its KV cache on the host, KV cache
# on its way to the decode pool, queued there, ended, refused.
NEW, WAITING, PREFILLING, DECODING, SWAPPED, MOVING, ARRIVED, DONE, REJECTED = range(9)

# States of a cohort: nothing to do, about to schedule, step in flight.
IDLE, READY, RUNNING = range(3)

MIXED, PREFILL_FIRST, STATIC = range(3)
ROUND_ROBIN, LEAST_LOADED, PREFIX_AWARE = range(3)
BOTH, PREFILL, DECODE = range(3)

# Why the loop came back.
ENDED, PAUSED, LOG_FULL, STINTS_FULL = range(4)

# A request. KEY: the token counter it ends at; BEGIN: the decode step it joined at, plus 1 (0: in no decode); JOINED: time of
# its last token before that; FILLED tokens are cached in prefill, of prompt and PRODUCED; HIT tokens lie in shared blocks;
# KNOWN tokens of the prompt need no prefill, though they take blocks of its own.
# NEXT and PREV chain the waiting or the running of a LEVEL of priority; AFTER and BEFORE those in prefill or of one KEY.
(
    ARRIVAL,
    ADMITTED,
    FIRST,
    FINISH,
    JOINED,
    KEY,
    BEGIN,
    PROMPT,
    OUTPUT,
    PRODUCED,
    FILLED,
    HIT,
    NEXT,
    PREV,
    AFTER,
    BEFORE,
    CELL,
    PREEMPTED,
    LEVEL,
    STATE,
    KNOWN,
) = range(21)
REQUEST_WORDS = 21

# What joins a request to others: its PREFIX group (−1: none), the tokens SHARED with it, whether its context KEEPS as an
# extension; the request that follows (its number, −1: none), and how much later.
PREFIX, SHARED, KEEPS, SUCCESSOR, THINK = range(5)
TURN_WORDS = 5

# The run's totals and where everything is. HEAD of LIMIT arrivals known beforehand; SPARE, the next of a closed loop, which
# comes TURNAROUND seconds after one ends.
(
    NOW,
    HORIZON,
    BATCH_TIME,
    BATCH,
    STEPS,
    PREEMPTIONS,
    HEAD,
    LIMIT,
    SPARE,
    CLOSED,
    ROUTER,
    MARGIN,
    REQUESTS,
    TURNS,
    HEADS,
    N_HEADS,
    POOLS,
    COHORTS,
    N_COHORTS,
    N_CELLS,
    LEVELS,
    RING_MASK,
    PENDING,
    N_PENDING,
    LOG,
    N_LOG,
    LOG_ROOM,
    STINTS,
    N_STINTS,
    STINT_ROOM,
    TURNAROUND,
) = range(31)
RUN_WORDS = 32

# An engine's step-time tables (first words) with the lengths of their grids, its limits, and the pool's place.
(
    P_TOKENS,
    P_TOKEN_TIME,
    P_SEQUENCES,
    P_SEQUENCE_TIME,
    P_REQUESTS,
    P_DECODE_KV,
    P_DECODE_TIME,
    P_QUERIES,
    P_PAIRS,
    P_PREFILL_TIME,
    P_N_TOKENS,
    P_N_SEQUENCES,
    P_N_REQUESTS,
    P_N_DECODE_KV,
    P_N_QUERIES,
    P_N_PAIRS,
    P_HOST,
    P_HOST_PER_SEQUENCE,
    P_HOST_OVERLAP,
    P_LAUNCH,
    P_GRAPH_SEQUENCES,
    P_SHARE,
    P_SWAP_TIME,
    P_ACCEPTED,
    P_LINK_LATENCY,
    P_LINK_TIME,
    P_MAX_BATCH,
    P_MAX_TOKENS,
    P_CHUNK,
    P_CHUNKED,
    P_POLICY,
    P_WHOLE,
    P_SWAP,
    P_HOST_BLOCKS,
    P_BLOCK,
    P_RESERVE,
    P_VERIFIED,
    P_STAGES,
    P_RANKS,
    P_ROLE,
    P_REPLICAS,
    P_FIRST_LANE,
    P_TURN,
    P_FETCH,
    P_FETCH_OVERLAP,
    P_AHEAD,
    P_PATIENCE,
) = range(47)
POOL_WORDS = 47

# An engine: when its first pipeline stage is free, when its link is; its pool and first cohort.
E_ENTRY, E_LINK, E_POOL, E_COHORT = range(4)
ENGINE_WORDS = 4

# A cohort: time of its next event, seconds spent in steps, its state, engine and first cell; when the step BEGAN that ends as
# the next begins (infinite: none does); steps that its ranks WAITED with their prompts for each other.
C_NEXT, C_BUSY, C_STATE, C_ENGINE, C_CELL, C_BEGAN, C_WAITED = range(7)
COHORT_WORDS = 7

# A cell: counters of tokens and steps, time of the last decode step; requests running and decoding, their cached tokens; the
# GAIN of tokens a request in the step in flight (0: no decode in it), its prompt QUERIES, query-key PAIRS, tokens FOUND cached,
# prompts FINISHED, seconds of swapping; budget left; whether a static batch still fills; the last arrival that the scheduler
# has SEEN; where the tables were last read;
# first words of its lists: ending by counter, KV blocks by residue, last admitted by priority.
(
    TOKENS,
    DECODE_STEPS,
    LAST,
    ACTIVE,
    DECODING_NOW,
    KV,
    GAIN,
    QUERIES,
    PAIRS,
    FOUND,
    FINISHED,
    DELAY,
    BUDGET,
    OPEN,
    LANE,
    PREFILL_HEAD,
    PREFILL_TAIL,
    AT_TOKENS,
    AT_SEQUENCES,
    AT_REQUESTS,
    AT_KV,
    AT_QUERIES,
    AT_PAIRS,
    ENDING,
    PHASES,
    TAILS,
    SEEN,
) = range(27)
CELL_WORDS = 27

# A lane: KV blocks free (those evictable among them) and in all, blocks swapped to the host; requests waiting and running; most
# blocks used, and their integral over time; ends of the list of evictable prefixes; first words of queues and prefixes.
(
    L_FREE,
    L_TOTAL,
    L_EVICTABLE,
    L_ON_HOST,
    L_WAITING,
    L_RUNNING,
    L_PEAK,
    L_KV_TIME,
    L_OLDEST,
    L_NEWEST,
    L_ENGINE,
    L_POOL,
    L_QUEUES,
    L_PREFIXES,
) = range(14)
LANE_WORDS = 14

# A prefix on a lane: tokens cached (whole blocks), running requests that use it, its place among the evictable.
CACHED, USERS, OLDER, NEWER = range(4)
PREFIX_WORDS = 4

# A stretch of decode that a preemption cut short, and a step in the log.
S_REQUEST, S_CELL, S_BEGIN, S_END, S_JOINED = range(5)
STINT_WORDS = 5
STEP_END, STEP_CELL = range(2)
STEP_WORDS = 2
PENDING_WORDS = 2
