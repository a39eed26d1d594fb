"""What is measured under load: one file form, with the time of every query."""

from __future__ import annotations

from typing import Literal

from gpusq_deploy.artifacts import Environment, ProcessStates, RuntimeInfo, Value

LoadScenario = Literal["offline", "server"]


class TrialRequest(Value):
    """One trial. A query is one inference of `batch` samples.

    Attributes:
        batch: The batch size.
        streams: How many run at the same time.
        seconds: Offline: how long queries are begun. Server: over which they arrive; those that wait twice as long are
            given up.
        rate: Server: queries per second, on average. None: offline.
        warmup: Inferences of each stream before.
        seed: Of the inputs and of the arrivals.
    """

    batch: int
    streams: int
    seconds: float
    rate: float | None = None
    warmup: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1 or self.streams < 1 or self.warmup < 0 or self.seed < 0:
            raise ValueError("a trial needs batch >= 1, streams >= 1, warmup >= 0 and seed >= 0")
        if not 0 < self.seconds < float("inf") or (self.rate is not None and not 0 < self.rate < float("inf")):
            raise ValueError("a trial needs a time and a rate that are positive and finite")


class LoadTrial(Value):
    """What happened to every query, in the order in which they were begun: ms since the trial began, unrounded.

    `due_ms` is when a query arrived: latency counts from there, so that a query that had to wait says so. It is empty
    offline, where all are there from the start. Queries arrive in order and are begun in order: those that were given
    up are the last of `due_ms`, and have no `started_ms` and `done_ms`.
    """

    request: TrialRequest
    due_ms: tuple[float, ...] = ()
    started_ms: tuple[float, ...]
    done_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.started_ms) != len(self.done_ms):
            raise ValueError("each query that was begun has an end")
        if self.request.rate is None and self.due_ms:
            raise ValueError("offline, no query has a time of arrival")
        if self.request.rate is not None and len(self.due_ms) < len(self.started_ms):
            raise ValueError("each query of a server has a time of arrival")
        if any(done < start for start, done in zip(self.started_ms, self.done_ms, strict=True)):
            raise ValueError("a query can't end before it is begun")

    @property
    def unanswered(self) -> int:
        """Queries that were given up."""
        return max(0, len(self.due_ms) - len(self.done_ms))


class Load(Value):
    """Everything measured under load in one go.

    Attributes:
        scenario: "offline": as many queries as can be done; "server": queries that arrive at random.
        latency_limit_ms: What the p99 had to keep to where the highest rate was searched; None: it wasn't.
        trials: In the order of measurement; of a search the first is offline.
        outputs, states: As of `Runs`; all trials run in one process.
    """

    schema: Literal["gpusq.load/1"] = "gpusq.load/1"
    created: str
    model: str
    model_digest: str
    runtime: RuntimeInfo
    environment: Environment
    scenario: LoadScenario
    latency_limit_ms: float | None = None
    outputs: Literal["reference", "compared", "not compared"]
    notes: tuple[str, ...] = ()
    states: tuple[ProcessStates, ...] = ()
    trials: tuple[LoadTrial, ...]

    def __post_init__(self) -> None:
        if not self.trials:
            raise ValueError("a load needs at least one trial")
        if self.latency_limit_ms is not None and self.scenario != "server":
            raise ValueError("a limit of latency is for a server")
