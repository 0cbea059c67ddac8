"""What is shown of a server's address."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbtc.cache.link import RedisLink
from qbtc.config.urls import redacted
from qbtc.errors import InputError
from qbtc.store.opening import shown


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://:pa/ss?wo#rd@host:1/0", "redis://***@host:1/0"),
        ("amqp://guest:guest@host/%2F?heartbeat=5", "amqp://***@host/%2F?***"),
        ("postgresql://host/db?password=hidden", "postgresql://host/db?***"),
        ("sqlite:///a/records.db", "sqlite:///a/records.db"),
        ("hidden", "***"),
    ],
)
def test_an_address_is_shown_without_its_secrets(url: str, safe: str) -> None:
    assert redacted(url) == safe


@given(st.text(min_size=3).filter(lambda text: text not in "redis://***@host:1/0"))
def test_no_password_is_ever_shown(password: str) -> None:
    assert redacted(f"redis://user:{password}@host:1/0") == "redis://***@host:1/0"


@given(st.text(min_size=3).filter(lambda text: text not in "postgresql://user@host:1/db"))
def test_no_password_of_a_database_is_ever_shown(password: str) -> None:
    assert shown(f"postgresql://user:{password}@host:1/db") == "postgresql://user@host:1/db"


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("postgresql://host/db?password=hidden", "postgresql://host/db"),
        ("postgresql://user@host:5432/db", "postgresql://user@host:5432/db"),
        ("sqlite:///a/records.db", "sqlite:///a/records.db"),
        ("hidden", "the database"),
    ],
)
def test_a_database_is_shown_without_its_secrets(url: str, safe: str) -> None:
    assert shown(url) == safe


@pytest.mark.parametrize("password", ["hid/den", "hid?den", "hid#den", "hid[den", "hidden/no.host"])
def test_a_malformed_address_of_redis_is_refused_without_its_password(password: str) -> None:
    with pytest.raises(InputError, match="%-escapes") as refused:
        RedisLink(f"redis://user:{password}@host:1/0")
    assert "hid" not in str(refused.value)
