"""`python -m jaxloop` is the `jaxloop` command."""

import sys

from jaxloop.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
