"""A template of somebody else's rejects a row, whatever it does; it never ends the run."""

import threading
import time

import pytest
from prompt_rows import ask, built, renderer, with_template

from adg_plugin.data import templates
from adg_plugin.data.time_limit import TimeLimit

ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def spin():
    while True:
        pass


def test_a_call_that_takes_too_long_ends_and_others_do_not():
    limit = TimeLimit(0.2)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            limit(spin)
        assert limit(lambda: 3) == 3
    began = time.monotonic()
    limit(lambda: time.sleep(0.05))
    time.sleep(0.4)  # nothing is raised behind a call that ended in time
    assert time.monotonic() - began < 2


def test_it_holds_in_any_thread():
    found = []

    def work():
        with pytest.raises(TimeoutError):
            TimeLimit(0.2)(spin)
        found.append("ended")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(5)
    assert found == ["ended"]


@pytest.mark.parametrize(
    ("template", "detail"),
    [
        (ENDLESS, "the chat template takes longer than 0 s for the row"),
        ("{{ 'x' * (10 ** 7) }}", "characters for the row, 1,048,576 is the most"),
        ("{{ messages | length // 0 }}", "the chat template refuses the row: "),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "the chat template refuses the row: "),
        ("{{ messages.__class__.__mro__ }}", "the chat template refuses the row: "),
    ],
)
def test_whatever_a_template_does_the_row_is_rejected(monkeypatch, template, detail):
    monkeypatch.setattr(templates, "_TIME_LIMIT", TimeLimit(2 if "10 **" in template else 0.2))
    monkeypatch.setattr(templates, "_LONGEST_PROMPT", 1 << 20)
    rejection = renderer(with_template(built("byte_level"), template)).render(ask("Hi"))
    assert rejection.reason == "template_error"
    assert detail in rejection.detail
