"""``python -m redraft.benchmarks.headline train | report``; needs no HTTP packages."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from redraft.benchmarks.headline.options import parse
from redraft.server.engine.draft_errors import as_redraft_error
from redraft.server.engine.types import RedraftError

MODULE = ("python", "-m", "redraft.benchmarks.headline")


def main(arguments: Sequence[str] | None = None, words: Sequence[str] = MODULE) -> None:
    """Entry point, also of ``redraft bench headline``, whose ``words`` these are then.

    What the user can mend becomes one line and exit code 2.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parse(given, " ".join(words))
    try:
        with as_redraft_error():
            if options.command == "report":
                from redraft.benchmarks.headline.report import report

                report(options.runs, options.results, options.arm, [*words, *given])
            else:
                from redraft.benchmarks.headline.command import train

                train(options, [*words, *given])
    except RedraftError as error:
        print(f"redraft: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
