"""`reid data check|verify|unpack|synthesize` under another name."""

import sys

from reid.commands import main

if __name__ == "__main__":
    main(["data", *sys.argv[1:]], prog_name="datasets/prepare.py")
