#!/bin/bash
# fuzz-smoke.sh [SECONDS]     runs every fuzz target for so long (default 10), stops at the first crash
#
# Starts from the corpora in fuzz/seeds/TARGET, where there are some; what libFuzzer finds on the way is
# thrown away. Skipped, with a message, only where cargo-fuzz cannot be installed.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-10}

if ! scripts/cargo-tools.sh cargo-fuzz; then
  echo "fuzz-smoke: SKIPPED: cargo-fuzz is missing and could not be installed" >&2
  exit 0
fi

export RUSTC_BOOTSTRAP=1
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/fuzz
cargo fuzz build --target-dir "$CARGO_TARGET_DIR"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
targets=0
for target in $(cargo fuzz list); do
  mkdir "$scratch/$target"
  corpora=("$scratch/$target")
  if [ -d "fuzz/seeds/$target" ]; then corpora+=("$PWD/fuzz/seeds/$target"); fi
  echo "fuzz-smoke: $target, $seconds s"
  if ! cargo fuzz run "$target" --target-dir "$CARGO_TARGET_DIR" "${corpora[@]}" -- \
      -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 >"$scratch/log" 2>&1; then
    tail -60 "$scratch/log" >&2
    echo "fuzz-smoke: $target FAILED; the input is under fuzz/artifacts/$target" >&2
    exit 1
  fi
  grep -E 'number_of_executed_units|peak_rss_mb' "$scratch/log" || true
  targets=$((targets + 1))
done
echo "fuzz-smoke: $targets targets ran without a crash"
