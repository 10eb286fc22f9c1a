"""All configuration, and the only place that reads the environment (prefix ``CERTSERVE_``)."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

__all__ = ["Settings"]

MiB = 1024 * 1024
GiB = 1024 * MiB


class Settings(BaseSettings):
    """One frozen object; ``Settings()`` reads the environment, keyword arguments win over it."""

    # Values are not shown in errors: some are secrets.
    model_config = SettingsConfigDict(
        env_prefix="CERTSERVE_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    data_dir: Path = Field(
        default=Path("certserve-data"), description="Uploads, journal, jobs and reports live here."
    )
    store_url: str | None = Field(
        default=None,
        pattern=r"^s3://[^/]+",
        description="s3://bucket/prefix that hosts share files through; unset: one data directory.",
    )
    redis_url: str | None = Field(
        default=None,
        pattern=r"^(redis|rediss|unix)://",
        description="Redis to use, e.g. redis://host:6379/0 or unix:///run/redis.sock; "
        "unset: the launcher starts an embedded one and passes its address on.",
    )
    redis_url_file: Path | None = Field(
        default=None, description="File that holds that address; CERTSERVE_REDIS_URL wins over it."
    )
    host: str = Field(
        default="127.0.0.1", description="Address to bind; only loopback without keys."
    )
    port: int = Field(default=8000, ge=0, le=65535, description="Port to bind.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where workers compute."
    )
    devices: Annotated[tuple[Annotated[int, Field(ge=0)], ...], NoDecode] = Field(
        default=(),
        description="Comma-separated numbers of the GPUs that a worker owns, counted from 0 (on a "
        "CPU: of processes); unset: one GPU, or as many processes as there are processors.",
    )
    max_devices: int = Field(
        default=8, gt=0, description="Most devices that one training may ask for."
    )
    rank_timeout_s: float = Field(
        default=45.0,
        gt=0,
        description="Seconds that a device of a training waits in a step for the other ones.",
    )
    data_sources: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(),
        description="Colon-separated folders that hold data sets in their public layouts; "
        "nothing is ever downloaded.",
    )

    max_model_bytes: int = Field(default=512 * MiB, gt=0, description="Largest model upload.")
    max_dataset_bytes: int = Field(default=2 * GiB, gt=0, description="Largest data set upload.")
    max_inflated_bytes: int = Field(
        default=8 * GiB, gt=0, description="Largest data set after decompression, in bytes."
    )
    max_compression_ratio: float = Field(
        default=100.0,
        gt=1,
        description="Largest compression ratio of an archive that inflates to over 64 MiB.",
    )
    max_samples: int = Field(default=1_000_000, gt=0, description="Most samples in a data set.")
    max_archive_members: int = Field(default=150_000, gt=0, description="Most files in a zip.")
    max_spec_bytes: int = Field(default=MiB, gt=0, description="Largest JSON text of a request.")

    samples_per_shard: int = Field(
        default=100, gt=0, description="Samples of one work item, rounded up to tens."
    )
    lease_ttl_s: float = Field(
        default=60.0,
        gt=0,
        description="Seconds after which a lease that is not renewed is free again.",
    )
    max_attempts: int = Field(
        default=3, gt=0, description="Tries of one item; after that its job fails."
    )
    retry_delay_s: float = Field(
        default=1.0, ge=0, description="Seconds before a failed item is tried again."
    )
    ticket_budget_s: float = Field(
        default=600.0, gt=0, description="Seconds that a worker serves one wake-up job."
    )
    queue_name: str = Field(
        default="certserve", min_length=1, description="RQ queue of the wake-up jobs."
    )
    reconcile_interval_s: float = Field(
        default=3.0, gt=0, description="Seconds between two rounds of the reconciler."
    )
    worker_ttl_s: float = Field(
        default=20.0, gt=0, description="Seconds after which a worker without a heartbeat is dead."
    )
    worker_threads: int = Field(default=1, gt=0, description="Compute threads of one worker.")
    training_threads: int | None = Field(
        default=None, gt=0, description="Compute threads of a training; default: all processors."
    )
    max_training_samples: int = Field(
        default=1_000_000_000,
        gt=0,
        description="Largest product of samples and epochs of one training.",
    )
    checkpoint_interval_s: float = Field(
        default=30.0, gt=0, description="Seconds between two checkpoints of a training."
    )
    memory_fraction: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of the container's, host's or GPU's memory that one bound may use.",
    )
    inspection_memory_bytes: int = Field(
        default=6 * GiB,
        gt=0,
        description="Address space, in bytes, of the child that parses an upload.",
    )
    inspection_timeout_s: float = Field(
        default=300.0, gt=0, description="Seconds that parsing an upload may take."
    )
    max_wait_s: float = Field(
        default=60.0, gt=0, description="Longest wait, in seconds, of ?wait= and Prefer: wait."
    )
    keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="API keys, comma-separated: secret or name=secret (admin=secret sees all); "
        "others are made with certserve keys create.",
    )
    keys_file: Path | None = Field(
        default=None, description="File that holds keys, one per line; CERTSERVE_KEYS wins over it."
    )
    public_url: str | None = Field(
        default=None,
        pattern=r"^https?://[a-z0-9.:\[\]-]+$",
        description="Address that browsers use, e.g. https://certserve.example, where a proxy "
        "stands before the service; pages' requests must come from it.",
    )
    session_s: float = Field(
        default=43_200.0, gt=0, description="Seconds after which a browser must log in again."
    )
    key_requests_per_s: float = Field(
        default=500.0, gt=0, description="Requests per second of one key, twice that in a burst."
    )
    key_open_jobs: int = Field(default=10_000, gt=0, description="Open jobs that one key may have.")
    key_upload_bytes_per_day: int = Field(
        default=256 * GiB, gt=0, description="Bytes that one key may upload per day (UTC)."
    )
    reuse_results: bool = Field(
        default=True,
        description="Whether an equal earlier result answers a submission (unless forced).",
    )
    retention_days: float | None = Field(
        default=None,
        gt=0,
        description="Days after which ended jobs and unused uploads are removed.",
    )
    upload_grace_s: float = Field(
        default=3600.0, ge=0, description="Seconds that an upload is kept although no job needs it."
    )
    sweep_interval_s: float = Field(
        default=3600.0, gt=0, description="Seconds between two sweeps of the retention."
    )
    min_free_bytes: int = Field(
        default=64 * MiB,
        ge=0,
        description="Free bytes on the disk below which the service is not ready.",
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="Log lines for people, or one JSON object each."
    )
    keep_alive_s: float = Field(
        default=10.0,
        gt=0,
        description="Seconds between two keep-alive comments of an event stream.",
    )
    max_event_streams: int = Field(
        default=2000, gt=0, description="Streams of events open at a time, per API process."
    )

    signing_key_file: Path | None = Field(
        default=None,
        description="Private Ed25519 key (PEM) that reports are signed with; "
        "unset: one is made in the data directory.",
    )

    webhook_secret: SecretStr | None = Field(
        default=None,
        description="What webhooks are signed with, whsec_BASE64 or a long text; "
        "unset: submissions that name one are refused.",
    )
    webhook_secret_file: Path | None = Field(
        default=None, description="File that holds it; CERTSERVE_WEBHOOK_SECRET wins over it."
    )
    webhook_allow: Annotated[
        tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...], NoDecode
    ] = Field(
        default=(),
        description="Comma-separated networks that webhooks may go to although they are private.",
    )
    webhook_ca_file: Path | None = Field(
        default=None, description="Certificates to trust instead of the system's."
    )
    webhook_timeout_s: float = Field(
        default=10.0, gt=0, description="Time limit of one delivery, in seconds."
    )
    webhook_tries: int = Field(
        default=10, gt=0, description="Tries after which a delivery is given up."
    )
    webhook_pause_s: float = Field(
        default=5.0,
        gt=0,
        description="Seconds before the second try; each later pause is four times as long.",
    )

    @model_validator(mode="before")
    @classmethod
    def _read_files(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Secrets in files. Raises OSError: an error of pydantic would show all values."""
        read = {}
        for name in ("redis_url", "keys", "webhook_secret"):
            path = values.get(f"{name}_file")
            if path and values.get(name) is None:
                lines = Path(path).read_text().split()
                if not lines:
                    raise OSError(f"{path} is empty")
                read[name] = ",".join(lines)
        return {**values, **read}

    @field_validator("data_sources", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(Path(part) for part in value.split(os.pathsep) if part)
        return value

    @field_validator("devices", mode="before")
    @classmethod
    def _split_devices(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("devices")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value):
            raise ValueError("every device is named once")
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 24:
            raise ValueError("a webhook secret has at least 24 characters")
        return value

    @field_validator("keys", "webhook_allow", mode="before")
    @classmethod
    def _split_keys(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("data_dir", mode="after")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()
