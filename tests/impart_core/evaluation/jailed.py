"""Program for the jail's tests: runs a text of Python in a jail and prints what became of it as a line of JSON.

Its argument, which its forks have too, marks its processes.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from impart_core.evaluation.jail import Jail, JailError


def main() -> None:
    request = json.loads(sys.stdin.readline())
    os.open("/", os.O_RDONLY | os.O_DIRECTORY)  # a way out, were it not closed
    with tempfile.TemporaryDirectory(prefix="impart-test-") as folder:
        jail = Jail(Path(folder) / "root", Path(folder) / "work")
        for made in (jail.root, jail.work):
            made.mkdir()

        def attack() -> Any:
            names: dict[str, Any] = {"os": os, **request["names"]}
            exec(request["source"], names)
            return names.get("result")

        try:
            print(json.dumps({"value": jail.run(attack, request["seconds"])}))
        except JailError as error:
            print(json.dumps({"error": str(error)}))


if __name__ == "__main__":
    main()
