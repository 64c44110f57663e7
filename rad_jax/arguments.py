"""The command line: what is typed, in other words, and what was meant."""

import difflib
import itertools
import pathlib
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from absl import flags

from rad_jax import config as configs

_KINDS = {
  bool: "True or False",
  int: "a whole number",
  float: "a number",
  tuple: 'values in brackets, such as "(1, 2)" or "(\'a\',)"',
}


def help_text(version: str, modes: Mapping[str, tuple[str, str, Any]]) -> str:
  """What --help prints; `modes`: what each does, an example, what runs it."""
  rows = ((name, says, given) for name, (says, given, _) in modes.items())
  lines = "\n".join("  {:13} {:22} {}".format(*row) for row in rows)
  names = ", ".join(packaged_configs())
  known = textwrap.indent(textwrap.fill(names, 76), "  ")
  return f"""rad_jax {version}: robust diffusion training

  python -m rad_jax --config=configs/digits.py --mode=train

--mode=         does                   for example
{lines}

--config=FILE[:smoke]    yours, or one of these; :smoke takes seconds:
{known}
                         or a run's folder, as --workdir is where none is given
--config.FIELD=VALUE     any field; --mode=show_config lists them all
--workdir=DIR            the run's folder; runs/<config> if not given
--traceback              where an error was raised
--helpfull               all flags, also those for several processes"""


def packaged_configs() -> dict[str, pathlib.Path]:
  """The config files that come with the package, by name."""
  package = pathlib.Path(__file__).parent
  # Installed they lie inside the package; in a checkout, beside it.
  for folder in (package / "configs", package.parent / "configs"):
    if folder.is_dir():
      return {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}
  return {}


def find_config(given: str) -> str:
  """The path of a config file, with its ":variant", or FileNotFoundError.

  "digits" and "configs/digits.py" name the package's where there is no other; a
  run's folder its own.
  """
  name, colon, variant = given.partition(":")
  path, known = pathlib.Path(name), packaged_configs()
  if (pathlib.Path(given) / "config.json").is_file():
    return f"{pathlib.Path(__file__).with_name('saved.py')}:{given}"
  if path.is_file():
    if path.suffix != ".py":
      raise ValueError(f"--config={given} is no config file: they end in .py")
    return given
  hint = f"the package has {', '.join(known)}"
  if str(path.parent) in (".", "configs"):
    if path.stem in known:
      return f"{known[path.stem]}{colon}{variant}"
    if close := difflib.get_close_matches(path.stem, known, 1):
      hint = f"did you mean configs/{close[0]}.py?"
  raise FileNotFoundError(f"no config file {name!r}; {hint}")


def parse_flags(
  argv: list[str], modes: Collection[str], help: Callable[[], str]
) -> None:
  """absl's parsing, with every error as one line and exit code 1.

  Without --config, the config of the run in --workdir serves; with it, it comes
  to stand first in argv.
  """
  if {"--help", "-help", "-h"} & set(argv):
    print(help())
    sys.exit(0)
  given = given_flags(argv)
  try:
    if argv[1:] and not argv[1].startswith("-"):
      raise flags.Error(_meant(argv[1], modes))
    _refuse_misspelt(given, modes)
    config = _config_of(given)
    if "config" in given:  # ml_collections wants it before its fields
      argv[1:] = [f"--config={given['config']}", *_without_config(argv)]
    rest = flags.FLAGS([argv[0], *config, *_without_config(argv)])[1:]
    if rest:
      raise flags.Error(_meant(rest[0], modes))
    return
  except flags.UnrecognizedFlagError as error:
    close = difflib.get_close_matches(error.flagname, flags.FLAGS, 1, 0.8)
    meant = f"; did you mean --{close[0]}?" if close else ""
    message = f"no flag --{error.flagname}"
    message += meant or _close_fields(error.flagname)
  except flags.IllegalFlagValueError as error:
    message = _illegal(error, given)
  except (flags.Error, AttributeError, KeyError, ValueError, OSError) as error:
    message = one_line(error).rstrip(".")
  sys.exit(f"rad_jax: error: {message} (--help shows examples)")


def given_flags(argv: Sequence[str]) -> dict[str, str]:
  """The flags, --name=value or --name value, by name."""
  found = {}
  for argument, following in itertools.pairwise([*argv[1:], ""]):
    name, equals, value = argument.lstrip("-").partition("=")
    if argument.startswith("-"):
      found[name] = value if equals else following
  return found


def _without_config(argv: Sequence[str]) -> list[str]:
  """The arguments but --config and its value."""
  return [
    argument
    for last, argument in itertools.pairwise(["", *argv[1:]])
    if last not in ("--config", "-config")
    and not re.match(r"--?config(=|$)", argument)
  ]


def _config_of(given: Mapping[str, str]) -> list[str]:
  """--config with the path of its file; none where no mode needs it."""
  chosen, workdir_ = given.get("config"), given.get("workdir", "")
  if chosen is not None:
    return [f"--config={find_config(chosen)}"]
  if given.get("mode") == "report" or any(n.startswith("help") for n in given):
    return []
  if (pathlib.Path(workdir_) / "config.json").is_file():
    return [f"--config={find_config(workdir_)}"]
  where = f"no run in --workdir={workdir_}, and " if workdir_ else ""
  raise flags.Error(
    f"{where}no config: give --config=digits (one of the package's),"
    " --config=FILE.py (yours) or --workdir=RUN (the folder of a run)"
  )


def _refuse_misspelt(given: Mapping[str, str], modes: Collection[str]) -> None:
  """Raises flags.Error for what absl and ml_collections do not say clearly."""
  for name, value in given.items():
    field = name.removeprefix("config.")
    if field != name and field not in configs.FIELDS:
      raise flags.Error(f"no field --{name}{_close_fields(field)}")
    if name in ("config", "workdir", "mode") and value[:1] in ("", "-", "="):
      raise flags.Error(
        f"--{name} has no value: write --{name}=VALUE, without spaces"
      )
    if name == "mode" and value not in modes:
      close = difflib.get_close_matches(value, modes, 1)
      hint = f"; did you mean --mode={close[0]}?" if close else "."
      known = ", ".join(modes)
      raise flags.Error(f"no mode {value!r}{hint} There are {known}")
  if given.get("mode") == "report" and "workdir" not in given:
    raise flags.Error(
      "--mode=report takes --workdir=RUN, or several: --workdir=RUN,RUN"
    )


def _close_fields(name: str) -> str:
  """A question for the fields that a misspelt name may have meant, or ""."""
  last = name.rpartition(".")[2]
  close = (
    difflib.get_close_matches(name, configs.FIELDS, 1, 0.8)
    or [path for path in configs.FIELDS if path.rpartition(".")[2] == last]
    or difflib.get_close_matches(name, configs.FIELDS, 1)
  )
  meant = " or ".join(f"--config.{path}" for path in close)
  return f"; did you mean {meant}?" if close else ""


def _meant(argument: str, modes: Collection[str]) -> str:
  """Of an argument that is no flag: what to write for it."""
  if argument in modes:
    return f"{argument!r} is no flag: write --mode={argument}"
  if (pathlib.Path(argument) / "config.json").is_file():
    return f"{argument!r} is no flag: write --workdir={argument}"
  if pathlib.Path(argument).suffix == ".py" or argument in packaged_configs():
    return f"{argument!r} is no flag: write --config={argument}"
  return f"{argument!r} is no flag: write --NAME=VALUE, without spaces"


def _illegal(error: Exception, given: Mapping[str, str]) -> str:
  """absl's message on a value, in words where it names no type."""
  found = re.match(r"flag --([^=]+)=", str(error))
  name = found[1] if found else ""
  field = configs.FIELDS.get(name.removeprefix("config."))
  if not field and name in flags.FLAGS:
    field = configs.Field(flags.FLAGS[name].default, "")
  if not field or type(field.default) not in _KINDS:
    return one_line(error).rstrip(".")
  allowed = _KINDS[type(field.default)]
  if field.rule and field.rule is not configs.SWITCH:
    allowed += f", {field.rule.words}"
  return f"--{name}={given[name]}: it must be {allowed}"


def prepare_command(argv: Sequence[str]) -> str:
  """The command that prepares the data of the command argv."""
  given = given_flags(argv)
  needed = ["config", "config.data.name", "config.data.data_dir"]
  needed += [] if "config" in given else ["workdir"]
  kept = [
    f"--{name}={value}" for name, value in given.items() if name in needed
  ]
  command = ["python", "-m", "rad_jax.main", *kept, "--mode=prepare_data"]
  return shlex.join(command)


def one_line(error: BaseException) -> str:
  """The message alone, where ml_collections packs errors or tracebacks in."""
  while error.args and isinstance(error.args[0], BaseException):
    error = error.args[0]
  text = str(error.args[0] if isinstance(error, KeyError) else error).strip()
  if "Traceback (most recent call last)" in text:
    text = text.splitlines()[-1].strip().partition(": ")[2]
  return " ".join(text.split())
