"""Options: typed, from YAML and the command line; what is wrong is one line."""

from dataclasses import dataclass

import pytest

from lm_experiments_tools import cli
from lm_experiments_tools.args import TrainerArgs, option
from lm_experiments_tools.errors import UserError


@dataclass
class Toy:
    rate: float = option(0.1, "a rate")
    mode: str = option("a", "a word")
    flag: bool = option(False, "a switch")
    sizes: list[int] | None = option(None, "some numbers")
    limit: int | None = option(None, "a number")


def yaml_file(tmp_path, text):
    path = tmp_path / "options.yaml"
    path.write_text(text)
    return str(path)


def test_the_command_line_overrides_yaml_which_overrides_defaults(tmp_path):
    config = yaml_file(tmp_path, "rate: 1e-3\nmode: no\nflag: true\nsizes: [1, 2]\nlimit: null\n")
    (toy,) = cli.parse(["--config", config, "--sizes", "3", "4"], Toy)
    assert toy == Toy(rate=0.001, mode="no", flag=True, sizes=[3, 4], limit=None)
    (toy,) = cli.parse(["--flag"], Toy)
    assert toy == Toy(flag=True)


WRONG = {
    "unknown key": ("ratee: 1\n", [], r"options.yaml: .*--ratee.*did you mean --rate"),
    "unknown option": ("", ["--modes", "b"], "--modes.*did you mean --mode"),
    "wrong type": ("limit: many\n", [], "options.yaml: .*limit.*many"),
    "key twice": ("rate: 1\nrate: 2\n", [], "rate given twice"),
    "nested": ("rate: {a: 1}\n", [], "rate has options inside"),
    "not a mapping": ("- 1\n", [], "expected lines of the form"),
    "not YAML": ("a: [\n", [], "options.yaml"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line_that_names_it(tmp_path, case):
    text, argv, message = WRONG[case]
    config = ["--config", yaml_file(tmp_path, text)] if text else []
    with pytest.raises(UserError, match=message) as error:
        cli.parse(config + argv, Toy)
    assert "\n" not in str(error.value)


def test_environment_variables_stand_in_yaml(tmp_path, monkeypatch):
    config = yaml_file(tmp_path, "# $NOT_SET in a comment\nmode: $TOY_MODE/x\n")
    with pytest.raises(UserError, match="set the environment variable TOY_MODE"):
        cli.parse(["--config", config], Toy)
    monkeypatch.setenv("TOY_MODE", "a b")
    assert cli.parse(["--config", config], Toy) == (Toy(mode="a b/x"),)


def test_a_missing_config_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot read config .*absent.yaml"):
        cli.parse(["--config", str(tmp_path / "absent.yaml")], Toy)


def test_options_of_earlier_scripts_warn_and_nothing_else(capsys):
    (toy,) = cli.parse(["--block_size", "5", "--limit", "3"], Toy, without_effect={"block_size": "whole segments"})
    assert toy == Toy(limit=3)
    assert "warning: --block_size has no effect: whole segments" in capsys.readouterr().out


def test_a_user_error_ends_a_program_with_one_line_and_code_2(capsys):
    def main():
        raise UserError("a wrong\n  thing")

    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    assert stop.value.code == 2 and capsys.readouterr().err == "error: a wrong thing\n"


def test_the_resolved_options_are_kept_and_changes_are_told(tmp_path, capsys):
    cli.write_config(tmp_path, {"lr": 0.1, "mixed_precision": "no"})
    cli.write_config(tmp_path, {"lr": 0.2, "mixed_precision": "no"})
    assert "warning: lr was 0.1" in capsys.readouterr().out
    (args,) = cli.parse(["--config", str(tmp_path / "config.yaml")], TrainerArgs)
    assert args.lr == 0.2 and args.mixed_precision == "no"


def test_every_option_has_help():
    import dataclasses

    from lm_experiments_tools.args import OptimizerArgs
    from lm_experiments_tools.data.associative_retrieval import AssociativeRetrievalArgs
    from lm_experiments_tools.data.babilong_task import BabilongArgs
    from lm_experiments_tools.run_options import RunArgs
    from modeling_armt.options import ModelArgs

    for task in (BabilongArgs, AssociativeRetrievalArgs):
        kinds = (RunArgs, task, ModelArgs, OptimizerArgs, TrainerArgs)
        fields = [field for kind in kinds for field in dataclasses.fields(kind)]
        assert all(field.metadata.get("help") for field in fields)
        assert len({field.name for field in fields}) == len(fields), "each option is declared once"
