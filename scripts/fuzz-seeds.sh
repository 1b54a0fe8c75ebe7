#!/bin/bash
# fuzz-seeds.sh     writes fuzz/seeds anew: small valid inputs for each target, made by the format crate
#
# Run it when an encoding changed, and commit the result. The same example prints the dumps that
# docs/format.md shows.
set -euo pipefail
cd "$(dirname "$0")/.."

rm -rf fuzz/seeds
cargo run --quiet --release -p undercroft-format --example worked_dump -- seeds fuzz/seeds
du -sh --apparent-size fuzz/seeds
