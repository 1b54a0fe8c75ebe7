#!/bin/bash
# run.sh IMAGE WORKDIR
#
# A full read of an NBD export whose bytes are all known, against `nbdcopy EXPORT null:`, in turn, over 1 and 4
# connections of a unix socket. IMAGE is a raw image that fits into the page cache; WORKDIR is made, best in memory, and
# removed at the end. Prints medians, nbdcopy's time by undercroft's, and CPU seconds of both ends.
#
#   ROUNDS=5   rounds
#   BIN=FILE   undercroft (default: target/release/undercroft)
set -euo pipefail
[ $# = 2 ] || { sed -n '2,/^set -e/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2; exit 2; }
image=$(realpath "$1") bin=$(realpath "${BIN:-target/release/undercroft}") rounds=${ROUNDS:-5}
mkdir "$2"
work=$(realpath "$2")
export UNDERCROFT_CONFIG=$work/config
nbdkit -f -U "$work/socket" --threads 16 file "$image" &
server=$!
trap 'kill $server 2>/dev/null; wait; rm -rf "$work"' EXIT
"$bin" --repo "$work/repo" init >/dev/null
"$bin" --repo "$work/repo" backup --vm vm --disk root="$image" >/dev/null 2>&1

server_cpu() { awk -v hz="$(getconf CLK_TCK)" '{ print ($14 + $15) / hz }' "/proc/$server/stat"; }
measure() { # WHAT CONNECTIONS COMMAND...
  local what=$1 connections=$2 before; shift 2
  before=$(server_cpu)
  /usr/bin/time -f '%e %U %S' -o "$work/time" "$@" >/dev/null 2>&1
  echo "$what $connections $(cat "$work/time") $before $(server_cpu)" >>"$work/results"
}
for _ in $(seq "$rounds"); do
  for n in 1 4; do
    measure nbdcopy "$n" nbdcopy --connections="$n" "nbd+unix:///?socket=$work/socket" null:
    measure undercroft "$n" "$bin" --repo "$work/repo" backup --vm vm \
      --disk "root=nbd+unix:///?socket=$work/socket&x-connections=$n"
  done
done
python3 - "$work/results" <<'P'
import collections, statistics, sys
runs = collections.defaultdict(list)
for line in open(sys.argv[1]):
    what, n, wall, user, system, before, after = line.split()
    runs[what, n].append((float(wall), float(user) + float(system) + float(after) - float(before)))
print("| connections | nbdcopy, s | undercroft, s | nbdcopy / undercroft | CPU s: nbdcopy | CPU s: undercroft |\n" + "| --- " * 6 + "|")
for n in "14":
    median = lambda what, field: statistics.median(run[field] for run in runs[what, n])
    ratio = statistics.median(a[0] / b[0] for a, b in zip(runs["nbdcopy", n], runs["undercroft", n]))
    print(f"| {n} | {median('nbdcopy', 0):.2f} | {median('undercroft', 0):.2f} | {ratio:.2f}x | "
          f"{median('nbdcopy', 1):.2f} | {median('undercroft', 1):.2f} |")
P
