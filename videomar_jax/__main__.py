"""The command `videomar`, also `python -m videomar_jax`: one name for all commands."""

import importlib
import sys

import videomar_jax
from videomar_jax.commands import interrupts

COMMANDS = {
    "train": ("main", "train a model on clips"),
    "sample": ("sample", "turn images and prompts into videos"),
    "prepare": ("prepare", "encode a folder of videos once, for training"),
    "convert": ("convert", "import published weights, or export a trained model to them"),
    "evaluate": ("evaluate", "score a checkpoint on held-out clips"),
}
"""Command → (module with its flags, summary)."""


def main() -> None:
    """Runs the command that the first argument names."""
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in ("-h", "-help", "--help", "help"):
        print(usage())
        return
    if command == "--version":
        print(videomar_jax.__version__)
        return
    if command not in COMMANDS:
        print(f"There is no command {command!r}.\n\n{usage()}", file=sys.stderr)
        sys.exit(2)
    name = COMMANDS[command][0]
    interrupts.watch(name)  # before the imports below, which take seconds
    from videomar_jax.commands import app

    module = importlib.import_module(f"videomar_jax.{name}")
    app.run(module.main, [f"videomar {command}", *arguments])


def usage() -> str:
    """The list of commands."""
    lines = ["usage: videomar COMMAND --flag=value ...", ""]
    lines += [f"  {name:10}{summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join([*lines, "", "videomar COMMAND --help lists a command's flags."])


if __name__ == "__main__":
    main()
