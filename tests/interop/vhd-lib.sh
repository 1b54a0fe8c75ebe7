#!/bin/bash
# vhd-lib.sh UNDERCROFT     checks VHDs against npm's vhd-lib (AGPL-3.0), which is fetched and thrown away
set -euo pipefail
undercroft=$(realpath "$1")
here=$(dirname "$(realpath "$0")")
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
npm install --prefix "$dir" --no-audit --no-fund --ignore-scripts vhd-lib@0.7.2
node "$here/vhd-lib.cjs" "$dir" "$undercroft"
