"""Claims of the commands `docs` and `launch-template`, and that what messages name is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

import pp_export
from pp_export import cli, shipped
from pp_export.core import errors
from pp_export.core.errors import ExportError, OptionError
from pp_export.distributed.abort import Hearsay
from pp_export.options.kinds import ExportOptions
from pp_export.options.values import check_keys
from tests.cpu.core.test_errors import KINDS

CODE = sorted(Path(pp_export.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("kind", [*KINDS, Hearsay], ids=lambda kind: kind.__name__)
def test_each_error_names_its_section(kind: type[ExportError]) -> None:
    """The last line of an error is a command that prints what is told of this class, and of no other."""
    *_, last = str(kind("it broke", advice="do this")).splitlines()
    section = last.removeprefix("  more:     pp_export docs ")
    told = shipped.page(section)
    assert issubclass(kind, getattr(errors, section))
    assert re.findall(r"^## (.*)$", told, re.MULTILINE) == [section]
    assert len(told.splitlines()) > 2


def test_texts_of_the_code_name_pages_and_templates_that_are_there() -> None:
    """Whatever a message says to run, `docs` and `launch-template` show it; no message names a file of the
    clone, which who installed the package doesn't have.
    """
    texts = [text for path in CODE for text in _messages(path)]
    named = re.findall(r"`pp_export (docs|launch-template) ([^`{]+)`", "\n".join(texts))
    assert len(named) >= 3
    for command, name in named:
        assert shipped.page(name) if command == "docs" else shipped.template(name)
    assert [text for text in texts if re.search(r"\b(docs|launch|configs)/\w+\.\w+", text)] == []


def _messages(path: Path) -> list[str]:
    """The texts of a module without its docstrings, and those of attributes."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    docs = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    found = [node for node in nodes if isinstance(node, ast.Constant) and id(node) not in docs]
    return [node.value for node in found if isinstance(node.value, str)]


def test_docs_lists_and_prints_pages(capsys: pytest.CaptureFixture[str]) -> None:
    """Each page that is listed can be printed, and begins with the title that the list gives."""
    assert cli.main(["docs"]) == 0
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert {"verify", "integrations/verl", "slurm", "troubleshooting"} <= listed.keys()
    for name, title in listed.items():
        assert cli.main(["docs", name]) == 0
        assert capsys.readouterr().out.startswith(f"# {title}\n")


def test_launch_template_lists_and_prints_templates(capsys: pytest.CaptureFixture[str]) -> None:
    """Each template that is listed is printed byte for byte: a shell script, or a job with known keys."""
    assert cli.main(["launch-template"]) == 0
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert {"slurm-one-node", "slurm-many-nodes", "torchrun", "job-one-node"} <= listed.keys()
    for name, purpose in listed.items():
        assert cli.main(["launch-template", name]) == 0
        printed = capsys.readouterr().out
        assert printed == shipped.templates()[name].read_text()
        assert len(purpose) > len(name)
        if name.startswith("job-"):
            check_keys(yaml.safe_load(printed), ExportOptions.__dataclass_fields__, name)
        else:
            assert printed.startswith("#!/usr/bin/env bash\n")


@pytest.mark.parametrize("command", ["docs", "launch-template"])
def test_a_name_that_is_not_there_is_refused_with_the_nearest(command: str) -> None:
    """A misspelt page or template is an error that names those like it."""
    known, show = {
        "docs": ("troubleshooting", shipped.page),
        "launch-template": ("slurm-one-node", shipped.template),
    }[command]
    with pytest.raises(OptionError, match=r"there is no such|has no such") as caught:
        show(known[:-2])
    assert known in str(caught.value.expected)
