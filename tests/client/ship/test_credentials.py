import logging
import stat

import pytest

from internist.errors import ConfigurationError
from internist.monitor.options import settle
from internist.ship.credentials import forget, keep, kept, place, token_for

THERE = "http://gpu-head:8237"


@pytest.fixture
def environ(tmp_path):
    return {"XDG_CONFIG_HOME": str(tmp_path / "config"), "HOME": str(tmp_path / "home")}


def test_a_token_is_kept_for_its_server_alone_and_for_its_owner_alone(environ, tmp_path):
    file = keep(THERE, "ours", environ)

    assert file == tmp_path / "config" / "internist" / "tokens.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert token_for(THERE, environ=environ) == "ours"
    assert token_for("http://gpu-head:9", environ=environ) is None
    assert token_for("https://gpu-head:8237", environ=environ) is None
    assert [one.name for one in file.parent.iterdir()] == ["tokens.json"]


@pytest.mark.parametrize("same", ["HTTP://GPU-HEAD:8237/", "gpu-head:8237", "http://ann:secret@gpu-head:8237"])
def test_a_server_is_the_same_however_its_address_is_written(environ, same):
    keep(same, "ours", environ)

    assert kept(environ) == {THERE: "ours"}


def test_the_port_that_goes_without_saying_is_not_part_of_an_address(environ):
    keep("https://train.example.org:443/internist/", "ours", environ)

    assert token_for("https://train.example.org/internist", environ=environ) == "ours"


def test_an_argument_wins_over_the_environment_which_wins_over_what_is_kept(environ):
    keep(THERE, "kept", environ)
    named = environ | {"INTERNIST_TOKEN": "named"}

    assert token_for(THERE, "given", environ=named) == "given"
    assert token_for(THERE, environ=named) == "named"
    assert token_for(THERE, "", environ=environ | {"INTERNIST_TOKEN": ""}) == "kept"


def test_a_training_script_shows_what_is_kept_for_its_server(environ):
    keep(THERE, "ours", environ)
    import inspect

    from internist import watch

    arguments = {name: one.default for name, one in inspect.signature(watch).parameters.items()}

    assert settle(arguments | {"server": THERE + "/"}, environ).token == "ours"
    assert settle(arguments, environ).token is None


@pytest.mark.parametrize(
    ("written", "mode", "reason"),
    [('{"http://gpu-head:8237": "ours"}', 0o640, "chmod 600"), ("no JSON", 0o600, "does not hold tokens"),
     ('{"http://gpu-head:8237": 7}', 0o600, "does not hold tokens")],
)  # fmt: skip
def test_a_file_that_others_may_read_or_that_is_none_of_ours_is_not_used_and_stops_no_training(
    environ, caplog, written, mode, reason
):
    file = keep(THERE, "ours", environ)
    file.write_text(written)
    file.chmod(mode)

    with caplog.at_level(logging.WARNING):
        assert token_for(THERE, environ=environ) is None
    assert reason in caplog.text and "ours" not in caplog.text
    with pytest.raises(ConfigurationError, match=reason):
        keep(THERE, "new", environ)


def test_tokens_are_forgotten_one_by_one_or_all_at_once(environ):
    keep(THERE, "ours", environ)
    keep("http://b", "theirs", environ)
    keep("http://c", "another", environ)

    assert forget("http://b/", environ) == ["http://b"]
    assert forget("http://b", environ) == []
    assert forget(None, environ) == [THERE, "http://c"] and kept(environ) == {}


def test_without_a_home_nothing_is_known_and_nothing_can_be_kept():
    assert place({"XDG_CONFIG_HOME": "relative"}) is None
    assert token_for(THERE, environ={}) is None
    assert str(place({"HOME": "/home/ada"})) == "/home/ada/.config/internist/tokens.json"
    with pytest.raises(ConfigurationError, match="HOME"):
        keep(THERE, "ours", {})
