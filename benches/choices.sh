#!/bin/bash
# choices.sh CORPUS WORKDIR
#
# Measures the choices that the repository's format was frozen on: chunkers and segment sizes, on web01's three days
# (day 1 in full, days 2 and 3 by changed blocks), web02 and db01. Prints two tables in Markdown.
set -euo pipefail
[ $# = 2 ] || { sed -n '2,/^set -e/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2; exit 2; }
corpus=$1 work=$2
bin=${BIN:-target/release/undercroft}
repo=$work/choices-repository

field() { sed -n "s/.*\"$1\": *\([0-9.]*\).*/\1/p" | head -1; }

run() { # NAME INIT-OPTIONS...
  local name=$1; shift
  rm -rf "$repo"
  "$bin" --repo "$repo" init "$@" >/dev/null
  local start end
  start=$(date +%s.%N)
  "$bin" --repo "$repo" backup --vm web01 --disk root="$corpus/web01-d1.raw" >/dev/null 2>&1
  end=$(date +%s.%N)
  local added=0 changed=0 day before after
  for day in 2 3; do
    before=$("$bin" --repo "$repo" --json stats | field meta_pack_bytes)
    "$bin" --repo "$repo" backup --vm web01 --disk root="$corpus/web01-d$day.raw" --parent web01@latest \
      --changed-blocks "$corpus/web01-d$day.cbt" >/dev/null 2>&1
    after=$("$bin" --repo "$repo" --json stats | field meta_pack_bytes)
    added=$((added + after - before))
    changed=$((changed + $("$bin" --repo "$repo" --json show web01@latest | field read_bytes)))
  done
  "$bin" --repo "$repo" backup --vm web02 --disk root="$corpus/web02-d1.raw" >/dev/null 2>&1
  "$bin" --repo "$repo" backup --vm db01 --disk root="$corpus/db01-d1.raw" >/dev/null 2>&1
  local stats; stats=$("$bin" --repo "$repo" --json stats)
  awk -v name="$name" -v t="$(echo "$end - $start" | bc)" -v added="$added" -v changed="$changed" \
    -v data="$(field data_pack_bytes <<<"$stats")" -v meta="$(field meta_pack_bytes <<<"$stats")" \
    -v unique="$(field unique_bytes <<<"$stats")" -v mean="$(field chunk_len_mean <<<"$stats")" \
    -v percent="$(field metadata_percent <<<"$stats")" 'BEGIN {
      printf "| %s | %.0f | %.1f | %.0f | %.1f | %.3f %% | %.2f %% | %.2f |\n", name, data/1048576, meta/1048576,
        unique/1048576, mean/1024, percent, 100*added/changed, t }'
  rm -rf "$repo"
}

echo "| choice | packs of data, MiB | packs of maps, MiB | unique, MiB | mean chunk, KiB | index and maps / unique | maps added / changed | full, s |"
echo "| --- | --- | --- | --- | --- | --- | --- | --- |"
for size in 4M 16M 64M; do run "segments of $size" --segment-size "$size"; done
run "aligned-v1, 16-32-64 KiB" --chunker aligned-v1:16K-32K-64K
run "aligned-v1, 64-128-256 KiB" --chunker aligned-v1:64K-128K-256K
run "fastcdc-v2020, 32-64-256 KiB" --chunker fastcdc-v2020:32K-64K-256K
