"""The README's commands name scripts and flags that there are."""

import re
import shlex
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_every_command_has_flags_that_its_script_knows(script):
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (Path(__file__).parents[1] / link).is_file(), link
    blocks = re.findall(r"```sh\n(.*?)```", README, re.S)
    commands = re.findall(r"python ((?:prepare_data|train_fastgan|evaluate)\.py[^\n#&;]*)",
                          "\n".join(blocks))
    assert len(commands) >= 9
    helps = {}
    for name, *arguments in map(shlex.split, commands):
        if name not in helps:
            helps[name] = script(name, "--help").stdout
        for flag in [word for word in arguments if word.startswith("--")]:
            assert re.search(rf"{flag}\b", helps[name]), (name, flag)
