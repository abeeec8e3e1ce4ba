"""The process that a run works in, and how far it is: bar, cell, lines."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import pytest

import fleximoe
from launch.api import child, errors, progress
from trainer.config.recipe import load_recipe


def test_a_process_that_dies_is_an_error_with_its_last_words(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "no such device" >&2\nexit 3\n')
    python.chmod(0o755)
    monkeypatch.setattr(child.sys, "executable", str(python))
    with pytest.raises(
        fleximoe.RunError, match=r"ended with exit code 3 and no answer; its last words were: no such d"
    ):
        child.run_apart(load_recipe("digits"), progress=False)


def test_what_a_child_says_becomes_a_result_or_an_error(tmp_path, monkeypatch):
    python = tmp_path / "python"
    monkeypatch.setattr(child.sys, "executable", str(python))
    for says, check in (('{"result": {"a": 1}}', None), ('{"error": "no", "input": true}', fleximoe.InputError),
                        ('{"error": "no", "input": false}', fleximoe.RunError)):  # fmt: skip
        python.write_text(
            f'#!/bin/sh\nread line\necho \'{{"log": "hello", "level": 20, "progress": null}}\'\necho \'{says}\'\n'
        )
        python.chmod(0o755)
        if check is None:
            assert child.run_apart(load_recipe("digits"), progress=False) == {"a": 1}
        else:
            with pytest.raises(check, match=r"^no$"):
                child.run_apart(load_recipe("digits"), progress=False)


def test_lines_go_to_stderr_and_only_warnings_if_none_are_wanted(capsys):
    for wanted in (True, False):
        with progress.show_progress(wanted) as shown:
            shown.line("step 1/2", logging.INFO, (1, 2))
            shown.line("careful", logging.WARNING, None)
    out, err = capsys.readouterr()
    assert out == "" and err == "step 1/2\ncareful\ncareful\n"


def test_a_cell_of_a_notebook_shows_one_line_that_changes(monkeypatch):
    shown: list[str] = []

    def display(html, display_id):
        shown.append(html)
        return SimpleNamespace(update=lambda new: shown.append(new))

    cell = SimpleNamespace(HTML=lambda text: text, display=display)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1)))
    monkeypatch.setitem(sys.modules, "IPython.display", cell)
    with progress.show_progress(True) as bar:
        bar.line("loss < 1", logging.INFO, (3, 9))
        bar.line("careful", logging.WARNING, None)
        bar.line("step", logging.INFO, (4, 9))
    assert shown == [
        '<div><progress value="3" max="9"></progress> 3/9 <code>loss &lt; 1</code></div>',
        '<div><progress value="3" max="9"></progress> 3/9 <code>careful</code><br>careful</div>',
        '<div><progress value="4" max="9"></progress> 4/9 <code>step</code><br>careful</div>',
    ]


def test_errors_keep_their_sentence_and_unexpected_ones_their_class():
    @errors.speaking
    def fail(error):
        raise error

    for error, kind in (
        (ValueError("a\nb"), fleximoe.InputError),
        (OSError("a b"), fleximoe.RunError),
        (FloatingPointError("a b"), fleximoe.RunError),
    ):
        with pytest.raises(kind, match=r"^a b$") as found:
            fail(error)
        assert found.value.__context__ is error and found.value.__suppress_context__
    with pytest.raises(KeyError):
        fail(KeyError("x"))
    with pytest.raises(TypeError):
        fail(TypeError("x"))
