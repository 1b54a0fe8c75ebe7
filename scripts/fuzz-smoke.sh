#!/bin/bash
# fuzz-smoke.sh [SECONDS]     runs every fuzz target for so long (default 5), as many at once as there are
#                             processors; fails if one of them crashes
#
# Starts from the corpora in fuzz/seeds/TARGET, where there are some; what libFuzzer finds on the way is
# thrown away. Skipped, with a message, only where cargo-fuzz cannot be installed.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-5}

if ! scripts/cargo-tools.sh cargo-fuzz; then
  echo "fuzz-smoke: SKIPPED: cargo-fuzz is missing and could not be installed" >&2
  exit 0
fi

export RUSTC_BOOTSTRAP=1
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/fuzz
started=$SECONDS
cargo fuzz build --target-dir "$CARGO_TARGET_DIR"
echo "fuzz-smoke: built in $((SECONDS - started)) s"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Decoders may not take memory that their input does not justify: one allocation of 64 MiB is a crash.
smoke() {
  local target=$1 corpora
  mkdir "$scratch/$target"
  corpora=("$scratch/$target")
  if [ -d "fuzz/seeds/$target" ]; then corpora+=("$PWD/fuzz/seeds/$target"); fi
  if ! cargo fuzz run "$target" --target-dir "$CARGO_TARGET_DIR" "${corpora[@]}" -- \
      -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -malloc_limit_mb=64 \
      -print_final_stats=1 >"$scratch/$target.log" 2>&1; then
    tail -60 "$scratch/$target.log" >&2
    echo "fuzz-smoke: $target FAILED; the input is under fuzz/artifacts/$target" >&2
    return 1
  fi
  printf 'fuzz-smoke: %-14s %s\n' "$target" "$(
    sed -nE 's/^stat::number_of_executed_units: *(.*)/\1 runs/p; s/^stat::peak_rss_mb: *(.*)/peak \1 MiB/p' \
      "$scratch/$target.log" | paste -sd, | sed 's/,/, /')"
}
export -f smoke
export scratch seconds

targets=$(cargo fuzz list)
xargs -P "$(nproc)" -I{} bash -euo pipefail -c 'smoke {}' <<<"$targets"
echo "fuzz-smoke: $(wc -l <<<"$targets") targets ran for $seconds s each without a crash"
