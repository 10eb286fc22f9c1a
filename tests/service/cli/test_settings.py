"""Wrong settings are told in a sentence, without their values, before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.cli.main import main
from service.cli.settings_check import unknown_settings
from service.contract.settings import Settings


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("CERTSERVE_PORT", "a-secret-put-into-the-wrong-line", "CERTSERVE_PORT: "),
        ("CERTSERVE_WEBHOOK_SECRET", "too-short", "CERTSERVE_WEBHOOK_SECRET: a webhook secret has"),
        ("CERTSERVE_REDIS_URL", "somewhere:6379", "CERTSERVE_REDIS_URL: "),
        ("CERTSERVE_KEYS", "short-one", "a key in CERTSERVE_KEYS has fewer than 16 characters"),
    ],
)
def test_what_is_wrong_is_said_and_no_value(
    name: str,
    value: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(name, value)
    assert main(["serve", "--port", "0", "--data-dir", str(tmp_path / "data")]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert value not in told
    assert "Traceback" not in told


def test_a_setting_that_is_none_is_pointed_out() -> None:
    environment = {"CERTSERVE_LEASE_TTL": "5", "CERTSERVE_PORT": "1", "CERTSERVE_TEST_DATA": "x"}
    (warning,) = unknown_settings(environment)
    assert warning.startswith("CERTSERVE_LEASE_TTL is not a setting")
    assert "CERTSERVE_LEASE_TTL_S" in warning


@pytest.mark.parametrize("value", ["1", "0", "perhaps"])
def test_a_setting_of_an_earlier_version_is_no_error(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CERTSERVE_ALLOW_DOWNLOAD", value)
    assert "allow_download" not in Settings().model_dump()
    (warning,) = unknown_settings({"CERTSERVE_ALLOW_DOWNLOAD": value})
    assert warning.startswith("CERTSERVE_ALLOW_DOWNLOAD is no setting any more: nothing is ever")


@pytest.mark.parametrize("arguments", [["--port", "80000"], ["--workers", "-3"]])
def test_numbers_out_of_range_are_a_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", *arguments])
    assert caught.value.code == 2
