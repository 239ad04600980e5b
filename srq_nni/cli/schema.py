"""``srq schema``: the JSON schema of option files, with which an editor explains, completes and checks their keys."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from srq_nni.cli.parser import Parser


def main(argv: Sequence[str]) -> None:
    """Print the schema, or write it to a file."""
    parser = Parser("schema", __doc__)
    parser.add_argument("-o", "--output", metavar="FILE.json", help="file to write instead of printing")
    parser.add_debug()
    args = parser.parse_args(argv)

    from srq_nni.atomic import atomic_file, file_to_write
    from srq_nni.models.json_schema import json_schema

    target = None if args.output is None else file_to_write(args.output, ending=".json")
    text = json.dumps(json_schema(), indent=2) + "\n"
    if target is None:
        sys.stdout.write(text)
        return
    with atomic_file(target) as file:
        file.write(text.encode())
