"""The `torchbooth` command."""

import sys

from booth.commands import cli


def main() -> int:
    """Run the console command."""
    return cli.main("torchbooth")


if __name__ == "__main__":
    sys.exit(main())
