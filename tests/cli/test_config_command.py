"""likely config: defaults of one's own, which every verb takes and a flag overrules."""

from __future__ import annotations

from test_commands import one_line

from likely.cli.config import config_file


def test_the_defaults_of_whoever_runs_the_tests_are_not_read():
    assert config_file().parent.name == "nobody"


def test_a_default_is_set_used_overruled_and_taken_away(cli, tiny, tmp_path):
    assert cli("config", "model", tiny).code == 0 and cli("config", "threads", "1").code == 0
    assert cli("config", "--json").json == {"file": str(tmp_path / "config.toml"), "model": str(tiny), "threads": 1}
    record = cli("generate", "a", "--max-tokens", 1, "--json").json
    assert record["model"] == tiny.stem or str(tiny) in record["model"]
    assert str(tiny) in cli("ask", "--help").out.replace("\n", "").replace(" ", "")
    one_line(cli("generate", "a", "-m", tmp_path / "other.gguf"), 1, "other.gguf")
    assert "model" not in cli("config", "model", "--unset", "--json").json
    assert cli("config", "threads").out == "threads = 1\n"


def test_what_is_for_models_on_this_machine_stays_out_of_servers(cli, tiny):
    assert cli("config", "threads", "1").code == 0 and cli("config", "runtime", "torch").code == 0
    one_line(cli("ask", "hi", "-m", "http://127.0.0.1:1/v1"), 1, "cannot be reached")
    one_line(cli("ask", "hi", "-m", "http://127.0.0.1:1/v1", "--threads", 2), 2, "a server has no option threads=")


def test_the_format_of_keys_and_values_is_a_flag(cli, tiny):
    plain = cli("generate", "a", "-m", tiny, "--max-tokens", 2, "--json").json
    assert (
        cli("generate", "a", "-m", tiny, "--max-tokens", 2, "--json", "--kv-dtype", "f32").json["text"] == plain["text"]
    )
    one_line(cli("generate", "a", "-m", tiny, "--kv-dtype", "q9"), 1, 'kv_dtype "q9"')


def test_the_model_stays_out_of_verbs_whose_default_is_another_one(cli, tiny, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("y\n1\n2\n")
    cli("config", "model", tiny)
    one_line(cli("forecast", table, "-c", "y", "-H", 2), 1, "time stamps")
    assert str(tiny) not in cli("sequence", "plan", "--help").out
    one_line(cli("diffusion", "generate", "x"), 2, "--model")


def test_a_path_is_kept_as_it_is_found_from_anywhere(cli, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny.parent)
    assert cli("config", "model", tiny.name, "--json").json["model"] == str(tiny)
    assert cli("config", "model", "smollm2", "--json").json["model"] == "smollm2"


def test_what_is_wrong_is_refused_in_one_line(cli, tmp_path):
    one_line(cli("config", "thread", "2"), 1, 'did you mean "threads"?')
    one_line(cli("config", "threads", "two"), 1, "whole number", "'two'")
    one_line(cli("config", "threads", "2", "--unset"), 2, "--unset")
    one_line(cli("config", "thread"), 1, 'did you mean "threads"?')
    one_line(cli("config", "thread", "--unset"), 1, 'did you mean "threads"?')
    one_line(cli("config", "threads", "0"), 2, "--threads")
    one_line(cli("config", "context", "1"), 2, "--context")
    one_line(cli("config", "runtime", "lama"), 2, '"lama"; did you mean "llamacpp"?')
    assert cli("config", "--json").json == {"file": str(tmp_path / "config.toml")}
    (tmp_path / "config.toml").write_text("model = 3\n")
    one_line(cli("models"), 1, "config.toml", "model must be a text")
    (tmp_path / "config.toml").write_text("model = \n")
    one_line(cli("models"), 1, "config.toml", "not TOML")


def test_an_error_of_the_system_is_told_without_its_number(cli, monkeypatch):
    def fail():
        raise OSError(30, "Read-only file system", "/x")

    monkeypatch.setattr("likely.cli.verbs.project.config.read_config", fail)
    assert cli("config").err == "Error: /x: Read-only file system\n"
