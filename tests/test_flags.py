"""The flags of every program are those of tests/flags.txt, and a word means the same in all of them.

A new flag makes a program harder to learn: give it a line there only if there is no other way.
"""

import argparse
import importlib
import importlib.util
from pathlib import Path

import pytest

from lab.cli import Parser
from lab.settings import GROUPS, VOCABULARY
from paper.__main__ import COMMANDS

HERE = Path(__file__).resolve().parent
EXPERIMENTS = {
    "pytorch_resnet_cifar10": ("trainer.py",),
    "EigenDamage-Pytorch": ("main_pretrain.py", "main_prune.py", "main_prune_separable.py"),
    "deficient-efficient": ("main.py", "count.py", "import_teacher.py", "collate_results.py"),
    "Transformer-PyTorch": (
        "preprocess.py", "train.py", "generate.py", "interactive.py", "score.py", "average_checkpoints.py",
        "data/prepare.py", "data/make-numbers.py",
    ),
}  # fmt: skip
PROGRAMS = [f"{folder}/{program}" for folder, programs in EXPERIMENTS.items() for program in programs]
PROGRAMS += [f"paper {command}" for command in COMMANDS]
TRAINERS = [name for name in PROGRAMS if Path(name).name in ("trainer.py", "main_pretrain.py", "main.py", "train.py")]


def parser_of(program: str) -> Parser:
    if program.startswith("paper "):
        command = program.removeprefix("paper ")
        return importlib.import_module(f"paper.{COMMANDS[command] or command}").build_parser()
    spec = importlib.util.spec_from_file_location(Path(program).stem.replace("-", "_"), HERE.parent / program)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if hasattr(module, "build_parser"):
        return module.build_parser()
    return module.settings.build_parser()


def shown(parser: Parser) -> dict[str, list[argparse.Action]]:
    """Return the flags and words in the help, by group."""
    groups = {group.title: [a for a in group._group_actions if a.help != argparse.SUPPRESS] for group in
              parser._action_groups}  # fmt: skip
    return {title: actions for title, actions in groups.items() if actions}


def written(program: str) -> str:
    """Return the section of a program in the list: flags by group, hidden ones, and other names of flags."""
    parser = parser_of(program)
    lines = [program]
    for title, actions in shown(parser).items():
        names = [a.metavar or a.dest if not a.option_strings else "/".join(a.option_strings) for a in actions]
        if title != "options" or names != ["-h/--help"]:
            lines.append(f"  {title}: {' '.join(str(name) for name in names if name != '-h/--help')}")
    foreign = [a for a in parser._actions if type(a).__name__ == "_Foreign"]
    hidden = [a for a in parser._actions if a.help == argparse.SUPPRESS and a.option_strings and a not in foreign]
    if hidden:
        lines.append(f"  hidden: {' '.join('/'.join(a.option_strings) for a in hidden)}")
    if parser.spellings:
        names = [f"{name}={flag}" + (f"={value}" if value else "") for name, (flag, value) in parser.spellings.items()]
        lines.append(f"  spellings: {' '.join(names)}")
    return "\n".join(lines)


def frozen() -> dict[str, str]:
    sections = (HERE / "flags.txt").read_text().strip().split("\n\n")
    return {section.split("\n")[0]: section for section in sections}


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_flags_are_those_of_the_list(program):
    assert written(program) == frozen()[program]


def test_the_list_has_no_other_programs():
    assert list(frozen()) == PROGRAMS


@pytest.mark.parametrize("program", TRAINERS)
def test_the_help_of_a_trainer_has_the_same_groups_everywhere(program):
    titles = [title for title in shown(parser_of(program)) if title != "options"]
    assert titles == list(GROUPS)


@pytest.mark.parametrize("program", TRAINERS)
def test_trainers_have_the_whole_vocabulary(program):
    parser = parser_of(program)
    known = {*parser._option_string_actions, *parser.spellings}
    absent = [name for name in VOCABULARY if f"--{name.replace('_', '-')}" not in known]
    assert absent == (["data_dir", "holdout"] if program.endswith("/train.py") else [])


def test_a_word_is_in_the_same_group_in_every_program():
    found: dict[str, set[str]] = {}
    for program in TRAINERS:
        for title, actions in shown(parser_of(program)).items():
            for name in {a.dest for a in actions} & {*VOCABULARY}:
                found.setdefault(name, set()).add(title)
    assert not {name: titles for name, titles in found.items() if len(titles) > 1}


@pytest.mark.parametrize("program", PROGRAMS)
def test_defaults_are_shown(program):
    """Of every flag that has one; what has none says so, is a switch, or must be given."""
    parser = parser_of(program)
    for actions in shown(parser).values():
        for action in actions:
            if action.nargs != 0 and action.default not in (None, "", [], argparse.SUPPRESS):
                assert "default" in parser._get_formatter()._get_help_string(action), action.dest


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_flag_is_shown_by_one_name(program):
    for actions in shown(parser_of(program)).values():
        for action in actions:
            negated = {f"--no-{name.removeprefix('--')}" for name in action.option_strings}
            names = [name for name in action.option_strings if name.startswith("--") and name not in negated]
            assert len(names) <= 1, names
