"""The story runs public commands, and none twice."""

import json

import pytest
import typer

from cluster.demo.steps import Story
from store import IncompleteError, InputError


@pytest.fixture
def story(tmp_path):
    story = Story(tmp_path)
    app = typer.Typer()
    calls = []

    @app.command("echo")
    def echo(word: str, code: int = 0, as_json: bool = typer.Option(False, "--json")) -> None:
        calls.append(word)
        if word == "bad":
            raise InputError("no such thing")
        print(json.dumps({"word": word, "json": as_json}))
        raise typer.Exit(code)

    @app.command("other")
    def other() -> None: ...

    story.app, story.calls = app, calls
    return story


def test_the_json_of_a_command_is_kept_and_a_rerun_does_not_repeat_it(story):
    for _ in range(2):
        path = story.command("echo", "hello", saves="echo.json")
    assert json.loads(path.read_text()) == {"word": "hello", "json": True}
    assert story.calls == ["hello"]
    assert story.said[0] == f"thresher echo hello --json > {story.folder}/echo.json"


def test_a_finding_is_an_answer(story):
    story.command("echo", "found", "--code", "1", saves="found.json")
    assert (story.folder / "found.json").exists()


def test_what_stopped_half_way_leaves_no_output_and_says_so(story):
    with pytest.raises(IncompleteError, match="exit code 2"):
        story.command("echo", "stopped", "--code", "2", saves="stopped.json")
    with pytest.raises(InputError):
        story.command("echo", "bad", saves="bad.json")
    assert list(story.folder.glob("*.json")) == []


def test_words_are_quoted_for_a_shell(story):
    story.command("echo", "two words; rm -rf", saves="quoted.json")
    assert "'two words; rm -rf'" in story.said[-1]
