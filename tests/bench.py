"""Run what `make bench` measures.

The warehouses' steps and a whole stage beside the same by hand, judging, a small night, and operations on the run folder.
"""

import subprocess
import sys

BENCHMARKS = ("warehouses", "stage")
_OF_ONE_SIZE = ("judging", "small_night", "store_operations")


def main() -> int:
    for name in (*BENCHMARKS, *_OF_ONE_SIZE):
        print(f"\nbench: {name}", flush=True)
        arguments = sys.argv[1:] if name in BENCHMARKS else []
        done = subprocess.run([sys.executable, "-m", f"tests.benchmarks.{name}", *arguments], check=False)
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
