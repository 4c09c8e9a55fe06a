"""A bar with the time left: on a terminal only, and with any text."""

import io

import pytest

from bayes_sd.progress import with_time_left
from bayes_sd.runs.log_files import duckdb, own_bar


class Terminal(io.StringIO):
    """What is printed to a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("kind", "count"), [(io.StringIO, 3), (Terminal, 3), (Terminal, 1)])
def test_steps_pass_under_a_bar_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, kind: type[io.StringIO], count: int
) -> None:
    monkeypatch.setattr("sys.stderr", file := kind())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert list(with_time_left(iter(range(count)), count, "reading [/x] a.csv")) == [*range(count)]
    said = file.getvalue()
    assert ("reading [/x] a.csv" in said and "100%" in said) == (kind is Terminal and count > 1)
    assert bool(said) == (kind is Terminal and count > 1)


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_duckdb_draws_its_own_bar_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, kind: type[io.StringIO]
) -> None:
    monkeypatch.setattr("sys.stdout", kind())
    engine = duckdb()
    setting = "SELECT current_setting('enable_progress_bar')"
    assert engine.raw_sql(setting).fetchone() == (kind is Terminal,)
    own_bar(engine, False)
    assert engine.raw_sql(setting).fetchone() == (False,)
