from __future__ import annotations

from pathlib import Path

import pytest

from service.settings import Settings, SettingsError, from_environ


def test_an_empty_environment_gives_the_defaults() -> None:
    assert from_environ({}) == Settings()


def test_variables_set_settings_of_their_type() -> None:
    settings = from_environ(
        {
            "SEQSERVE_MODELS": "/models",
            "SEQSERVE_PORT": "9000",
            "SEQSERVE_TIMEOUT_S": "2.5",
            "SEQSERVE_DEVICE": "cpu",
            "SEQSERVE_HOST": "0.0.0.0",
        }
    )
    assert settings == Settings(
        models=Path("/models"), port=9000, timeout_s=2.5, device="cpu", host="0.0.0.0"
    )


def test_what_is_not_ours_is_left_alone() -> None:
    assert from_environ({"HOME": "/root", "PORT": "1", "SEQSERVE_DATA": "/data"}) == Settings()


def test_an_unknown_setting_is_named_with_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"SEQSERVE_PROT is not a setting.*SEQSERVE_PORT"):
        from_environ({"SEQSERVE_PROT": "1"})


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("SEQSERVE_PORT", "http", "SEQSERVE_PORT='http' is not of type int"),
        ("SEQSERVE_PORT", "", "is not of type int"),
        ("SEQSERVE_PORT", "80.5", "is not of type int"),
        ("SEQSERVE_PORT", "65536", "port is 0 to 65535, not 65536"),
        ("SEQSERVE_TIMEOUT_S", "soon", "is not of type float"),
        ("SEQSERVE_THREADS", "-1", "is negative or not finite"),
        ("SEQSERVE_TIMEOUT_S", "inf", "is negative or not finite"),
        ("SEQSERVE_TIMEOUT_S", "nan", "is negative or not finite"),
        ("SEQSERVE_DEVICE", "tpu", "is not one of auto, cpu, cuda"),
        ("SEQSERVE_VARIANT", "int4", "is not one of exact, int8, float16"),
        ("SEQSERVE_LOG_LEVEL", "INFO", "is not one of debug, info, warning, error"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_by_name(
    variable: str, text: str, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        from_environ({variable: text})


def test_every_setting_is_described() -> None:
    documentation = Settings.__doc__ or ""
    assert [name for name in Settings.__slots__ if f"\n        {name}: " not in documentation] == []


def test_int8_cannot_be_deterministic() -> None:
    with pytest.raises(SettingsError, match="deterministic and variant int8 exclude each other"):
        from_environ({"SEQSERVE_VARIANT": "int8", "SEQSERVE_DETERMINISTIC": "1"})
