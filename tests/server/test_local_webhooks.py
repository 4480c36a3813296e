import pytest

from internist_server.alerts.addresses import is_local
from internist_server.app import create_api
from internist_server.errors import SettingsError
from internist_server.settings import Settings, require_allowed, require_safe

LOCAL = [
    "http://localhost/x", "http://LOCALHOST.:9/", "http://a.localhost", "http://127.0.0.1:1", "http://127.1", "http://[::1]/",
    "http://2130706433", "http://0x7f.1", "http://0.0.0.0", "http://0", "http://[::ffff:127.0.0.1]", "http://169.254.169.254/m",
    "http://[fe80::1%25eth0]/", "http://user:password@127.0.0.1",
]  # fmt: skip
FAR = [
    "http://example.org",
    "https://10.0.0.1/hook",
    "http://[2001:db8::1]/",
    "http://localhost.example.org",
    "http://ü.example",
]


@pytest.mark.parametrize("url", LOCAL)
def test_what_is_on_this_machine_or_its_link_is_known_however_it_is_written(url):
    assert is_local(url)


@pytest.mark.parametrize("url", FAR)
def test_what_is_elsewhere_is_not(url):
    assert not is_local(url)


def test_a_server_beyond_loopback_calls_its_own_machine_only_where_that_is_meant(tmp_path):
    beyond = {"host": "0.0.0.0", "token": "t", "webhook_url": "http://user:secret@127.0.0.1/x"}

    with pytest.raises(SettingsError, match=r"the webhook http://127\.0\.0\.1 is on this machine") as refused:
        require_safe(Settings(**beyond))
    assert "secret" not in str(refused.value)
    require_safe(Settings(**beyond, local_webhooks=True))
    require_safe(Settings(webhook_url="http://127.0.0.1/x"))
    with pytest.raises(SettingsError):
        require_allowed(Settings(local_webhooks=False), ["http://127.0.0.1/x"])


def test_the_receivers_of_a_file_are_held_to_it_too(tmp_path):
    rules = tmp_path / "internist.toml"
    rules.write_text('[[receiver]]\nname = "oncall"\nwebhook_url = "http://127.0.0.1:9/x"\n')

    with pytest.raises(SettingsError, match="INTERNIST_LOCAL_WEBHOOKS"):
        create_api(Settings(host="0.0.0.0", token="t", rules=rules, database_url=f"sqlite:///{tmp_path / 'a.db'}"))
