from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from multibox.cli import COMMANDS, cli
from multibox.cli.options import KeyValueCommand, Number


@click.command(cls=KeyValueCommand)
@click.argument("sources", nargs=-1)
@click.option("--conf", type=Number(0, 1, max_open=True))
@click.option("--max-det", type=int)
@click.option("--name", default="run")
@click.option("--save/--no-save", default=None)
@click.option("--save-txt/--no-save-txt", default=False)
@click.option("--json/--no-json", "as_json", default=False)
@click.option("--dry", is_flag=True)
@click.option("-v", "--verbose", is_flag=True)
@click.option("-o", "--output")
def many(**values: Any) -> None:
    click.echo(json.dumps(values))


@click.command(cls=KeyValueCommand)
@click.argument("kind")
@click.argument("source")
@click.option("--name")
def two(**values: Any) -> None:
    click.echo(json.dumps(values))


DEFAULTS = {
    "sources": [],
    "conf": None,
    "max_det": None,
    "name": "run",
    "save": None,
    "save_txt": False,
    "as_json": False,
    "dry": False,
    "verbose": False,
    "output": None,
}


def parse(*words: str, command: click.Command = many) -> dict[str, Any]:
    result = CliRunner().invoke(command, list(words))
    assert result.exit_code == 0, result.output
    values: dict[str, Any] = json.loads(result.stdout)
    return values if command is two else {k: v for k, v in values.items() if v != DEFAULTS[k]}


def refusal(*words: str, command: click.Command = many) -> str:
    result = CliRunner().invoke(command, list(words))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.output
    return result.stderr.splitlines()[-1]


def test_nothing() -> None:
    assert parse() == {}


@pytest.mark.parametrize(
    "words", [["--max-det", "3"], ["--max_det", "3"], ["--max-det=3"], ["--max_det=3"], ["max-det=3"], ["max_det=3"]]
)
def test_every_spelling_of_a_value(words: list[str]) -> None:
    assert parse(*words) == {"max_det": 3}


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--save"], True),
        (["--no-save"], False),
        (["--no_save"], False),
        (["--save", "true"], True),
        (["--save", "False"], False),
        (["--save", "on"], True),
        (["--save", "no"], False),
        (["--save=true"], True),
        (["--save=0"], False),
        (["--no-save=true"], False),
        (["--no-save=false"], True),
        (["save=true"], True),
        (["save=YES"], True),
        (["save=1"], True),
        (["save=off"], False),
        (["no-save=1"], False),
        (["no_save=no"], True),
        (["--save", "--no-save"], False),
    ],
)
def test_every_spelling_of_a_switch(words: list[str], value: bool) -> None:
    assert parse(*words) == {"save": value}


def test_a_switch_with_another_name_inside() -> None:
    for words in (["--json"], ["json=true"], ["--json=yes"], ["--json", "true"]):
        assert parse(*words) == {"as_json": True}
    assert parse("--json", "json=false") == {}
    assert "unknown option 'as_json'" in refusal("as_json=true")


def test_a_flag_without_a_negative() -> None:
    for words in (["--dry"], ["dry=true"], ["--dry=1"]):
        assert parse(*words) == {"dry": True}
    assert parse("dry=false") == {}
    assert parse("--dry", "true") == {"dry": True, "sources": ["true"]}


def test_a_switch_takes_no_picture_for_its_value() -> None:
    assert parse("--save", "cat.jpg") == {"save": True, "sources": ["cat.jpg"]}
    # Folders are often called 0 and 1; these are values only with an equals sign.
    assert parse("--save", "0") == {"save": True, "sources": ["0"]}
    assert parse("--save-txt", "true", "true") == {"save_txt": True, "sources": ["true"]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["save=maybe"], "save is a switch: write save=true or save=false, not 'maybe'"),
        (["--save="], "save is a switch: write save=true or save=false, not ''"),
        (["--save-txt=2"], "save-txt is a switch: write save-txt=true"),
        (["cnof=.3"], "unknown option 'cnof'; did you mean 'conf'?"),
        (["--cnof", ".3"], "unknown option '--cnof'; did you mean '--conf'?"),
        (["--cnof=.3"], "unknown option '--cnof'; did you mean '--conf'?"),
        (["-conf", ".3"], "unknown option '-conf'; did you mean '--conf'?"),
        (["maxdet=3"], "unknown option 'maxdet'; did you mean 'max_det'?"),
        (["--maxdet", "3"], "unknown option '--maxdet'; did you mean '--max-det'?"),
        (["--no-sve"], "unknown option '--no-sve'; did you mean '--no-save'?"),
        (["--jsn"], "unknown option '--jsn'; did you mean '--json'?"),
        (["-x"], "the nearest are --max-det, --save-txt, --verbose; `many --help` lists all"),
        (["--sourse", "a.jpg"], "unknown option '--sourse'; did you mean '--source'?"),
        (["--source"], "option --source needs a value"),
        (["zzz=a.jpg"], "; a file of that name is written ./zzz=…"),
        (["conf=1"], "1.0 is not in the range 0<=x<1."),
        (["conf=nan"], "'nan' is not a number."),
        (["conf=-0.1"], "-0.1 is not in the range"),
        (["conf=high"], "'high' is not a valid number"),
        (["conf="], "'' is not a valid number"),
        (["--conf"], "option --conf needs a value: write --conf=…"),
        (["a.jpg", "-o"], "option -o needs a value"),
        (["max_det=2.5"], "'2.5' is not a valid integer."),
    ],
)
def test_refusals(words: list[str], message: str) -> None:
    assert message in refusal(*words)


@pytest.mark.parametrize("value", ["a=b", "conf=3", "--save", "-", "--", "", " ", "ä=ö", "-o", "true"])
def test_the_word_after_an_option_is_its_value_whatever_it_is(value: str) -> None:
    assert parse("--name", value) == {"name": value}
    assert parse(f"name={value}") == {"name": value}
    assert parse(f"--name={value}") == {"name": value}


def test_the_last_one_wins() -> None:
    assert parse("conf=.3", "--conf", ".5", "conf=0.25") == {"conf": 0.25}


def test_short_options() -> None:
    assert parse("-v", "a.jpg", "-o", "x=y", "b.jpg") == {
        "verbose": True,
        "output": "x=y",
        "sources": ["a.jpg", "b.jpg"],
    }


def test_options_and_pictures_in_any_order() -> None:
    expected = {"sources": ["a.jpg", "-", "b.jpg"], "conf": 0.5, "save": True}
    assert parse("a.jpg", "conf=.5", "-", "--save", "b.jpg") == expected
    assert parse("--save", "a.jpg", "-", "b.jpg", "--conf", ".5") == expected


def test_a_bare_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse("a.jpg", "save_txt", "json") == {"sources": ["a.jpg"], "save_txt": True, "as_json": True}
    Path("json").mkdir()
    assert parse("json") == {"sources": ["json"]}
    assert parse("conf") == {"sources": ["conf"]}  # only switches need no value
    assert parse("help") == {"sources": ["help"]}


def test_a_picture_with_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "unknown option 'a'" in refusal("a=b.jpg")
    Path("a=b.jpg").touch()
    assert parse("a=b.jpg") == {"sources": ["a=b.jpg"]}
    for word in ("./a=b.jpg", "x/conf=1.jpg", "http://host/?conf=1", "ä=b.jpg", "1=2.jpg", "=", "=x", "a b=c.jpg"):
        assert parse(word) == {"sources": [word]}


def test_an_option_wins_over_a_file_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("conf=0.5").touch()
    assert parse("conf=0.5") == {"conf": 0.5}
    assert parse("./conf=0.5") == {"sources": ["./conf=0.5"]}


@pytest.mark.parametrize(
    ("verb", "line", "found"),
    [
        ("predict", "--source a.jpg --model m", {"sources": ("a.jpg",), "model": "m"}),
        ("predict", "--source=a.jpg b.jpg data=c.jpg", {"sources": ("a.jpg", "b.jpg", "c.jpg")}),
        ("train", "--data d --model m", {"data": "d", "model": "m"}),
        ("val", "--data d --model m", {"data": "d", "model": "m"}),
        ("val", "m --source d", {"data": "d", "model": "m"}),
        ("export", "--data d --model m", {"data": "d", "model": "m"}),
        ("benchmark", "--data d --model m --model=n", {"data": "d", "models": ("m", "n")}),
        ("compare", "--run-a a --run_b=b", {"run_a": Path("a"), "run_b": Path("b")}),
        ("info", "--model m", {"model": "m"}),
        ("check", "--data d --model m", {"data": "d", "model": "m"}),
        ("anchors", "--source d --model m", {"data": "d", "model": "m"}),
        ("convert", "--from a --to b", {"source": "a", "target": "b"}),
        ("convert", "--data=a target=b", {"source": "a", "target": "b"}),
    ],
)
def test_the_names_of_arguments_in_every_verb(verb: str, line: str, found: dict[str, Any]) -> None:
    command = importlib.import_module(COMMANDS[verb][0]).command
    parent = click.Context(cli, info_name="multibox", **cli.context_settings)
    values = command.make_context(verb, line.split(), parent).params
    assert {name: values[name] for name in found} == found


def test_source_names_an_argument() -> None:
    assert parse("a.jpg", "source=b=c.jpg", "sources=c.jpg", "d.jpg") == {
        "sources": ["a.jpg", "b=c.jpg", "c.jpg", "d.jpg"]
    }


@pytest.mark.parametrize(
    "words",
    [["k", "s"], ["kind=k", "source=s"], ["source=s", "kind=k"], ["k", "source=s"], ["source=s", "k"], ["kind=k", "s"]],
)
def test_named_arguments_find_their_place(words: list[str]) -> None:
    assert parse(*words, "name=n", command=two) == {"kind": "k", "source": "s", "name": "n"}


def test_too_many_and_too_few_arguments() -> None:
    assert "Missing argument 'SOURCE'" in refusal("k", command=two)
    assert "unexpected extra argument" in refusal("k", "s", "t", command=two)


def test_after_two_dashes_everything_is_an_argument() -> None:
    assert parse("conf=.5", "--", "--save", "conf=.3", "-x", "--") == {
        "conf": 0.5,
        "sources": ["--save", "conf=.3", "-x", "--"],
    }


def test_help_is_shown() -> None:
    result = CliRunner().invoke(many, ["a.jpg", "--help"])
    assert result.exit_code == 0
    assert "--max-det" in result.output


def test_shell_completion_of_an_unfinished_line() -> None:
    from click.shell_completion import BashComplete

    group = click.Group("top", commands={"many": many})
    found = [item.value for item in BashComplete(group, {}, "top", "_X").get_completions(["many", "cnof=1"], "--max")]
    assert found == ["--max-det"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=5))
def test_any_words_are_parsed_or_refused(words: list[str]) -> None:
    result = CliRunner().invoke(many, words)
    assert result.exit_code in (0, 2)
    assert result.exception is None or isinstance(result.exception, SystemExit)


plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@settings(max_examples=50, deadline=None)
@given(st.lists(plain, max_size=4), plain)
def test_any_words_after_two_dashes_stay_as_they_are(words: list[str], name: str) -> None:
    expected = {"sources": words, "name": name}
    assert parse("--name", name, "--", *words) == {k: v for k, v in expected.items() if v != DEFAULTS[k]}
