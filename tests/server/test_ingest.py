import numpy as np

from tests.server.sending import Sender, module_series


def test_what_was_sent_is_read_back(api):
    sender = Sender(api)
    series = [module_series(0, "activation.rms_max", "blocks.0"), module_series(1, "activation.abs_max", "blocks.0")]
    records = sender.declare(series) + [sender.frame(step, [1.5, step]) for step in range(0, 100, 10)]

    reply = sender.send(records)

    assert reply["acknowledged"] == len(records) - 1
    assert reply["stored"] == len(records)
    assert sender.points("activation.abs_max") == {step: float(step) for step in range(0, 100, 10)}
    assert sender.get()["last_step"] == 90
