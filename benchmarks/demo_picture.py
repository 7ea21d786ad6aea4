"""The picture in README.md: filters of each layer before and after `slimrank demo`, from the demo's own figures.

    slimrank demo && python benchmarks/demo_picture.py demo docs/demo.svg

The same chart as "Widths" in the demo's report.html; it takes no time to draw.
"""

import argparse
import json
from pathlib import Path

from slimrank.evaluate.pages.plots import widths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `slimrank demo` or `slimrank compress` wrote")
    parser.add_argument("picture", type=Path, help="the SVG file to write")
    args = parser.parse_args()
    report = json.loads((args.folder / "report.json").read_text(encoding="utf-8"))
    pairs = next(stage for stage in report["stages"] if stage["name"] == "prune")["widths"]
    before, after = ({layer: pair[side] for layer, pair in pairs.items()} for side in (0, 1))
    args.picture.write_text(widths(before, after) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
