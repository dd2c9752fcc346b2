"""Command line and YAML for typed options.

Options are fields of dataclasses, declared once. Their values come from defaults, then `--config FILE.yaml`, then the
command line. An unknown key is an error; names that earlier scripts used and that mean nothing here warn.
"""

import atexit
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from .errors import UserError
from .loggers import say
from .preemption import Preempted
from .status import exit_code

NULLS = ("", "~", "null")
_parse_only: ContextVar[bool] = ContextVar("parse_only", default=False)


class _Parsed(Exception):
    """Leaves a program behind its options."""

    def __init__(self, options: tuple[Any, ...]):
        self.options = options


class _Parser(HfArgumentParser):
    def error(self, message: str):
        """One line, as every other error of the user's."""
        unknown = [word for word in message.split() if word.startswith("--")] if "unrecognized" in message else []
        close = [match for word in unknown for match in difflib.get_close_matches(word, self._option_string_actions, 1)]
        hint = f" (did you mean {', '.join(close)}?)" if close else ""
        raise UserError(f"{message}{hint}; --help lists the options")


def parse(
    argv: Sequence[str] | None, *kinds: type, description: str = "", without_effect: dict[str, str] | None = None
) -> tuple[Any, ...]:
    """Instances of the dataclasses `kinds`.

    Args:
        argv: words of the command line; None: the program's own.
        without_effect: names of earlier scripts that are accepted with a warning, each with the reason.

    Raises:
        UserError: an unknown option, a value of the wrong type, a bad YAML file.
    """
    parser = _Parser(kinds, description=description, allow_abbrev=False, conflict_handler="error")
    parser.add_argument("--config", default=None, help="YAML file of options; the command line overrides it")
    without_effect = without_effect or {}
    for name in without_effect:
        parser.add_argument(f"--{name}", nargs="*", help="no effect: " + without_effect[name])
    arguments = list(sys.argv[1:] if argv is None else argv)
    config = _config_file(arguments)
    if config is not None:
        arguments = to_arguments(read_yaml(config)) + arguments
    try:
        values = vars(parser.parse_args(arguments))
    except UserError as error:
        raise UserError(f"{config}: {error}" if config and not _parses(parser, argv) else str(error)) from error
    options = tuple(kind(**{field.name: values[field.name] for field in fields(kind)}) for kind in kinds)
    if _parse_only.get():
        raise _Parsed(options)
    for name, reason in without_effect.items():
        if values[name] is not None:
            say(f"warning: --{name} has no effect: {reason}")
    return options


def options_of(main: Callable[[list[str]], Any], argv: Sequence[str]) -> dict[str, Any]:
    """All options, by name, that a program reads from a command line; it goes no further than its call of `parse`."""
    token = _parse_only.set(True)
    try:
        main(list(argv))
    except _Parsed as parsed:
        return resolved(*parsed.options)
    finally:
        _parse_only.reset(token)
    raise TypeError(f"{main} does not read its options by cli.parse")


def split(argv: Sequence[str], kind: type) -> tuple[Any, list[str]]:
    """An instance of a dataclass, and the words that are no options of it.

    Raises:
        UserError: a value of the wrong type.
    """
    values, others = _Parser(kind, allow_abbrev=False, add_help=False).parse_known_args(list(argv))
    return kind(**vars(values)), others


def _parses(parser: _Parser, argv: Sequence[str]) -> bool:
    """Whether the command line alone is at fault."""
    try:
        parser.parse_args(list(argv))
    except UserError:
        return True
    return False


def _config_file(arguments: list[str]) -> str | None:
    for position, word in enumerate(arguments):
        if word == "--config" and position + 1 < len(arguments):
            return arguments[position + 1]
        if word.startswith("--config="):
            return word.partition("=")[2]
    return None


class _Loader(yaml.BaseLoader):
    """Scalars stay text, so that the options' types decide: 1e-3 is a number and `no` is a word."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
    names = [loader.construct_object(key) for key, _ in node.value]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise UserError(f"{', '.join(sorted(repeated))} given twice")
    return {name: loader.construct_object(value, deep=True) for name, (_, value) in zip(names, node.value)}


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping with text scalars, in which $NAME stands for an environment variable.

    Raises:
        UserError: no such file, not YAML, not a mapping, a key twice, or a variable that is not set.
    """
    try:
        text = os.path.expandvars(_without_comments(Path(path).read_text(encoding="utf-8")))
        content = yaml.load(text, _Loader)  # a BaseLoader makes text only
    except OSError as error:
        raise UserError(f"cannot read config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UserError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected lines of the form `option: value`")
    unset = re.findall(r"\$\w+", text)
    if unset:
        raise UserError(f"{path}: set the environment variable {unset[0][1:]}")
    return content


def _without_comments(text: str) -> str:
    return "".join(line + "\n" for line in text.splitlines() if not line.lstrip().startswith("#"))


def to_arguments(options: dict[str, Any]) -> list[str]:
    """Options of a YAML mapping as command-line words; empty and null values are left out."""
    words = []
    for name, value in options.items():
        if isinstance(value, dict):
            raise UserError(f"option {name} has options inside; give it one value or a list")
        if isinstance(value, list):
            words += [f"--{name}", *value]
        elif value not in NULLS:
            words += [f"--{name}", value]
    return words


def resolved(*options: Any) -> dict[str, Any]:
    """All options of some dataclass instances, by name."""
    return {name: value for instance in options for name, value in asdict(instance).items()}


def to_yaml(options: dict[str, Any]) -> str:
    """Options as a file that `read_yaml` takes."""
    return yaml.safe_dump(options, sort_keys=False)


def write_config(folder: Path, options: dict[str, Any]) -> None:
    """Keep the resolved options of a run as `config.yaml`; a resumed run warns about what changed."""
    path = folder / "config.yaml"
    if path.exists():
        before = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        for name, value in options.items():
            if name in before and before[name] != value:
                say(f"warning: {name} was {before[name]!r} when {folder} was started, now {value!r}")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(to_yaml(options), encoding="utf-8")
    temporary.replace(path)


@contextmanager
def mendable(*kinds: type[Exception]) -> Iterator[None]:
    """Inside, these exceptions are the user's to mend: shown as one line."""
    try:
        yield
    except kinds as error:
        raise UserError(" ".join(str(error).split())) from error


def run(main: Callable[[], Any]) -> None:
    """Call a program. An error that the user can mend is one line on stderr and exit code 2; a run that was asked to
    stop and is to be continued ends with `preemption.EXIT_CODE`."""
    code = 0
    try:
        main()
    except Preempted as preempted:
        say(f"saved, to be continued: {preempted}")
        code = exit_code(preempted)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = exit_code(error)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """End a rank of torchrun without taking the interpreter apart.

    Threads of torch.distributed that want the interpreter's lock then abort the process, seldom ("terminate called
    without an active exception"), and torchrun takes a run that is done for a failed one.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
