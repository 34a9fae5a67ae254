"""How the service listens, limits, remembers and fails: the ``service`` section of a config."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from router_runtime.yaml_config import StrictModel

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Port = Annotated[int, Field(ge=1, le=65_535)]


class AdminConfig(StrictModel):
    """The admin API: its own port, on loopback only, with its own credential; off without one.

    Parameters
    ----------
    port : int
        Where it listens.
    key_env : str
        Name of the variable that holds the credential. Where it is not set there is no admin API.
    """

    port: Port = 8081
    key_env: str = "MODEL_ROUTER_ADMIN_KEY"


class KeysConfig(StrictModel):
    """How API keys are checked.

    Parameters
    ----------
    pepper_env : str
        Name of the variable with the secret that goes into the digests by which keys are stored.
    refresh_s : float
        Seconds after which a new or revoked key is known to every process.
    """

    pepper_env: str = "MODEL_ROUTER_PEPPER"
    refresh_s: Seconds = 2.0


class RequestLimits(StrictModel):
    """Caps on one request, checked before anything is parsed, decoded or sent.

    Parameters
    ----------
    max_body_bytes : int
        Of the body.
    max_depth : int
        Of objects and lists within one another in the body.
    max_messages : int
        Of a conversation.
    max_images : int
        In a conversation.
    max_output_tokens : int
        That a request may ask for.
    max_in_flight : int
        Requests at a time in this process; beyond it they are refused with status 503.
    """

    max_body_bytes: int = Field(default=32 * 2**20, ge=1024)
    max_depth: int = Field(default=32, ge=4, le=200)
    max_messages: int = Field(default=2048, ge=1)
    max_images: int = Field(default=32, ge=0)
    max_output_tokens: int = Field(default=131_072, ge=1)
    max_in_flight: int = Field(default=512, ge=1)


class CallConfig(StrictModel):
    """Attempts at candidates.

    Parameters
    ----------
    max_attempts : int
        Candidates tried for one request, the first included.
    deadline_s : float
        Seconds for all attempts of one request up to the first byte.
    stream_idle_s : float
        Longest silence within a stream.
    max_answer_bytes : int
        Longest answer that is not streamed.
    """

    max_attempts: int = Field(default=3, ge=1, le=20)
    deadline_s: Seconds = 300.0
    stream_idle_s: Seconds = 60.0
    max_answer_bytes: int = Field(default=64 * 2**20, ge=1024)


class BreakerConfig(StrictModel):
    """When a target that fails is left alone.

    After its rest one success closes the breaker, one failure opens it for twice as long. While it
    is closed, each success takes one failure back, so that a few per cent of failures under load
    open nothing.

    Parameters
    ----------
    failures : int
        So many within ``window_s`` open it.
    window_s : float
        Seconds that a failure counts.
    rest_s : float
        Seconds of the first rest.
    max_rest_s : float
        Seconds of the longest rest.
    probes : int
        Calls at a time that are let through after a rest.
    """

    failures: int = Field(default=5, ge=1)
    window_s: Seconds = 30.0
    rest_s: Seconds = 10.0
    max_rest_s: Seconds = 120.0
    probes: int = Field(default=1, ge=1)


class StickinessConfig(StrictModel):
    """A conversation stays with its model unless another gains more than ``margin``.

    Parameters
    ----------
    margin : float
        In the policy's own terms: probability for ``highest_probability`` and for a model below its
        threshold, ``P - lambda x USD`` for ``utility``, share of the cost saved for
        ``cheapest_qualified``. 0 switches stickiness off.
    ttl_s : float
        Seconds without a request after which a conversation's model is forgotten.
    max_sessions : int
        Conversations that are remembered; beyond it the oldest are forgotten.
    header : str
        The request header that names a conversation.
    """

    margin: float = Field(default=0.05, ge=0, allow_inf_nan=False)
    ttl_s: Seconds = 3600.0
    max_sessions: int = Field(default=100_000, ge=1)
    header: str = Field(default="x-session-id", pattern=r"^[a-z0-9-]{1,64}$")


class BatchingConfig(StrictModel):
    """Concurrent requests are encoded together, and equal ones once.

    What comes while the encoder works is its next batch.

    Parameters
    ----------
    max_wait_ms : float
        Milliseconds that an idle encoder waits for company, which pays only where one alone costs
        nearly as much as many: on a GPU.
    max_batch : int
        Requests that are encoded together.
    max_queue : int
        Requests that may wait; beyond it they are refused with status 503.
    cache_entries : int
        Predictions that are remembered for equal requests; 0: none.
    """

    max_wait_ms: float = Field(default=0.0, ge=0, le=1000)
    max_batch: int = Field(default=64, ge=1, le=4096)
    max_queue: int = Field(default=1024, ge=1)
    cache_entries: int = Field(default=10_000, ge=0)


class ClampConfig(StrictModel):
    """Bounds of what a request's ``router`` object may ask for.

    Parameters
    ----------
    threshold_min : float
        A lower threshold becomes this.
    threshold_max : float
        A higher threshold becomes this.
    max_cost_usd : Decimal or None
        The most that ``max_cost_usd`` of a request may be; None: no bound.
    """

    threshold_min: Share = 0.0
    threshold_max: Share = 1.0
    max_cost_usd: Decimal | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> ClampConfig:
        if self.threshold_min > self.threshold_max:
            raise ValueError("threshold_min is above threshold_max")
        return self


class StoreConfig(StrictModel):
    """Where decisions, spend, keys and feedback are kept.

    Parameters
    ----------
    url : str
        SQLAlchemy URL: ``sqlite:///runs/service.db`` or ``postgresql+psycopg://...``; a password
        belongs into a variable (``${DATABASE_URL}``).
    spool : Path
        Folder of the journal that records are written to before an answer ends; replayed after a
        crash. Relative to the config file.
    max_spool_bytes : int
        Beyond it records are dropped, and counted as lost.
    content : bool
        Keep messages of requests, for ``export-feedback``. Off: no text and no picture is kept.
    retention_days : int or None
        Content older than this is deleted; None keeps it.
    """

    url: str = "sqlite:///runs/service.db"
    spool: Path = Path("runs/spool")
    max_spool_bytes: int = Field(default=512 * 2**20, ge=2**20)
    content: bool = False
    retention_days: int | None = Field(default=30, ge=1)


class ExpensiveConfig(StrictModel):
    """Alarm on a key whose share of calls to the dearest candidates leaps.

    Prefixes that steer a router towards dear models show in that share. ``action: clamp`` takes
    the dearest candidates from the key until the share is back.

    Parameters
    ----------
    share : float
        Of the last ``window`` routed calls of a key; 1 switches the alarm off.
    window : int
        Calls that are looked at.
    models : tuple of str
        The dear ones; empty: the dearest by price of output tokens.
    action : {"alarm", "clamp"}
        ``alarm`` logs and counts it, ``clamp`` also takes the models away.
    """

    share: Share = 0.8
    window: int = Field(default=200, ge=10, le=100_000)
    models: tuple[str, ...] = ()
    action: Literal["alarm", "clamp"] = "alarm"


class TracesConfig(StrictModel):
    """OpenTelemetry. Content is never in its spans.

    Parameters
    ----------
    endpoint : str or None
        URL that spans are sent to (OTLP over HTTP); None: nowhere.
    sample : float
        Share of requests that are traced.
    """

    endpoint: str | None = None
    sample: Share = 1.0


class ServiceConfig(StrictModel):
    """What ``model-router serve`` does.

    Parameters
    ----------
    host : str
        Address at which the service listens. Without keys only loopback is served.
    port : int
        Port at which it listens.
    default_models : tuple of str
        Take a request, the first that can serve it, where the router itself fails. Empty: the
        candidates in their order.
    baseline_model : str or None
        What savings are told against; None: the dearest candidate.
    redis_url : str or None
        Shares limits and budgets among replicas; None: each process counts alone.
    """

    host: str = "127.0.0.1"
    port: Port = 8080
    admin: AdminConfig = AdminConfig()
    keys: KeysConfig = KeysConfig()
    requests: RequestLimits = RequestLimits()
    calls: CallConfig = CallConfig()
    breaker: BreakerConfig = BreakerConfig()
    stickiness: StickinessConfig = StickinessConfig()
    batching: BatchingConfig = BatchingConfig()
    clamps: ClampConfig = ClampConfig()
    store: StoreConfig = StoreConfig()
    expensive: ExpensiveConfig = ExpensiveConfig()
    traces: TracesConfig = TracesConfig()
    default_models: tuple[str, ...] = ()
    baseline_model: str | None = None
    redis_url: str | None = None
