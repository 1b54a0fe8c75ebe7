#!/bin/bash
# run.sh WORKDIR
#
# Increments of a disk full of data whose 64 KiB blocks changed here and there, against reading it all again, in turn.
# WORKDIR is made, needs twice the disk's size, and is removed at the end. Prints medians, and what was read against
# what changed.
#
#   GIB=8        size of the disk
#   PERCENT=1    share of its blocks that change each time
#   ROUNDS=5     rounds
#   BIN=FILE     undercroft (default: target/release/undercroft)
set -euo pipefail
[ $# = 1 ] || { sed -n '2,/^set -e/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2; exit 2; }
bin=$(realpath "${BIN:-target/release/undercroft}") rounds=${ROUNDS:-5} gib=${GIB:-8} percent=${PERCENT:-1}
mkdir "$1"
work=$(realpath "$1")
trap 'rm -rf "$work"' EXIT
disk=$work/disk.raw
{ openssl enc -aes-128-ctr -nosalt -pass pass:disk -in /dev/zero 2>/dev/null || true; } | head -c "${gib}G" >"$disk"
sync "$disk"
undercroft() { "$bin" --repo "$work/repo" --json "$@"; }
undercroft init >/dev/null
undercroft backup --vm vm "$disk" >/dev/null

# Writes noise into so many blocks and lists them as extents.
change() { # SEED
  python3 - "$disk" "$percent" "$1" >"$work/changes" <<'P'
import json, os, random, sys
path, percent, seed = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
block = 64 << 10
blocks = os.path.getsize(path) // block
random.seed(seed)
changed = sorted(random.sample(range(blocks), round(blocks * percent / 100)))
with open(path, "r+b") as disk:
    for number in changed:
        disk.seek(number * block)
        disk.write(random.randbytes(block))
    os.fsync(disk.fileno())
json.dump([{"offset": number * block, "length": block} for number in changed], sys.stdout)
P
}
measure() { # WHAT COMMAND...
  local what=$1; shift
  /usr/bin/time -f '%e %U %S' -o "$work/time" "$@" >"$work/report" 2>/dev/null
  echo "$what $(cat "$work/time") $(python3 -c '
import json, sys
report = json.load(open(sys.argv[1]))
audits = report["audits"]
print(report["read_bytes"], sum(a["read_bytes"] for a in audits), sum(a["blocks"] for a in audits),
      sum(e["length"] for e in json.load(open(sys.argv[2]))), report["metadata_bytes"])
' "$work/report" "$work/changes")" >>"$work/results"
}
for round in $(seq "$rounds"); do
  change "$round"
  measure increment "$bin" --repo "$work/repo" --json backup --vm vm "$disk" \
    --parent vm@latest --changed-blocks "$work/changes"
  measure again "$bin" --repo "$work/repo" --json backup --vm vm "$disk"
done
python3 - "$work/results" <<'P'
import collections, statistics, sys
runs = collections.defaultdict(list)
for line in open(sys.argv[1]):
    what, *figures = line.split()
    runs[what].append([float(figure) for figure in figures])
median = lambda what, field: statistics.median(run[field] for run in runs[what])
print("| | wall, s | CPU, s | read, MB | by the audit, MB (blocks) | changed, MB | new maps, MB |\n" + "| --- " * 7 + "|")
for what, name in (("increment", "increment"), ("again", "all read again")):
    cpu = statistics.median(run[1] + run[2] for run in runs[what])
    mb = lambda field: f"{median(what, field) / 1e6:.1f}"
    print(f"| {name} | {median(what, 0):.2f} | {cpu:.2f} | {mb(3)} | {mb(4)} ({median(what, 5):.0f}) | {mb(6)} | {mb(7)} |")
ratios = [a[0] / b[0] for a, b in zip(runs["increment"], runs["again"])]
print(f"increment / all read again: {statistics.median(ratios):.3f}x ({min(ratios):.3f} to {max(ratios):.3f})")
P
