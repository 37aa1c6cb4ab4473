"""The same as `reid prepare`: verify or unpack an archive you downloaded, or make the embedded data set."""

import sys

from reid.commands import main

if __name__ == "__main__":
    main(["prepare", *sys.argv[1:]], prog_name="datasets/prepare.py")
