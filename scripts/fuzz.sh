#!/bin/bash
# fuzz.sh [TARGET [libFuzzer options...]]     without TARGET: lists the targets
#
# Sanitizer and coverage flags are unstable options of rustc; RUSTC_BOOTSTRAP=1 lets the stable
# compiler take them, so that no nightly toolchain is needed. The target directory is fuzzing's own:
# its flags would otherwise throw away everything else that was built.
set -euo pipefail
cd "$(dirname "$0")/.."

export RUSTC_BOOTSTRAP=1
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/fuzz
if [ $# = 0 ]; then
  exec cargo fuzz list
fi
target=$1
shift
exec cargo fuzz run "$target" --target-dir "$CARGO_TARGET_DIR" -- "$@"
