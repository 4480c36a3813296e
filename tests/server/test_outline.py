"""An outline that was too large for its start follows in pieces."""

from internist.schema.wire import Module, Outline, Route
from tests.server.sending import Sender, start_of

MODULES = tuple(Module(f"experts.{number}", "Linear", "linear") for number in range(6))
ROUTES = tuple(Route(f"experts.{number}.weight", "Muon", "muon", "0") for number in range(6))


def kept(sender):
    modules = [one["name"] for one in sender.get("/coverage")["modules"]]
    return modules, [one["parameter"] for one in sender.get("/routing")["routes"]], sender.get()["config"]


def pieces(sender):
    contents = [Outline(config={"lr": 0.1}), Outline(modules=MODULES[:3]), Outline(modules=MODULES[3:])]
    contents += [Outline(routing=ROUTES[:5]), Outline(routing=ROUTES[5:], config={"seed": 7})]
    return [sender.record(outline=outline) for outline in contents]


def test_pieces_make_the_whole_in_one_request_or_several_and_again_change_nothing(api):
    whole = [one.name for one in MODULES], [one.parameter for one in ROUTES], {"lr": 0.1, "seed": 7}
    at_once, one_by_one = Sender(api), Sender(api, start_of("run2"))

    at_once.send(pieces(at_once))
    for record in pieces(one_by_one):
        one_by_one.send([record])

    assert kept(at_once) == kept(one_by_one) == whole
    at_once.send(pieces(at_once))
    assert kept(at_once) == whole


def test_a_start_that_told_everything_is_not_changed_by_the_pieces_that_follow(sqlite_api):
    sender = Sender(sqlite_api, start_of(modules=MODULES, routing=ROUTES, config={"lr": 0.2}))

    sender.send(pieces(sender))

    assert kept(sender)[2] == {"lr": 0.2, "seed": 7}
    assert len(kept(sender)[0]) == len(MODULES)


def test_ranks_of_a_pipeline_make_one_outline(sqlite_api):
    first = Sender(sqlite_api, start_of(world_size=2, modules=MODULES[:3], routing=ROUTES[:3]))

    Sender(sqlite_api, start_of(world_size=2, rank=1, modules=MODULES[2:], routing=ROUTES[2:]))

    assert kept(first)[:2] == ([one.name for one in MODULES], [one.parameter for one in ROUTES])


def test_a_bad_line_of_a_piece_is_left_out_with_its_reason(sqlite_api):
    sender = Sender(sqlite_api)

    reply = sender.post([sender.record(outline=Outline(modules=(Module("a" * 600, "Linear", "linear"), *MODULES)))])

    assert [one["reason"] for one in reply.json()["refused"]] == ["module has 600 characters; at most 512"]
    assert len(kept(sender)[0]) == len(MODULES)
