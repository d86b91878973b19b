"""What `make bench` runs: the warehouses' steps and a whole stage, each beside the same by hand."""

import subprocess
import sys

BENCHMARKS = ("warehouses", "stage")


def main() -> int:
    for name in BENCHMARKS:
        print(f"\nbench: {name}", flush=True)
        done = subprocess.run([sys.executable, "-m", f"tests.benchmarks.{name}", *sys.argv[1:]], check=False)
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
