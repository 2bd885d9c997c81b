"""``python -m prefect_veogen.cli``: the same as the command `prefect-veogen`."""

import sys

from prefect_veogen.cli import main

if __name__ == "__main__":
    sys.exit(main())
