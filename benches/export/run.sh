#!/bin/bash
# run.sh IMAGE WORKDIR
#
# An export of a snapshot against `nbdkit file` serving the raw image that was backed up, in turn, over unix sockets: all of
# it through nbdcopy, random 4 KiB reads at queue depth 32 through fio, and the time from command to first byte. IMAGE is a
# raw image; WORKDIR is made, and removed at the end. Needs nbdkit, nbdcopy, fio with its nbd engine, python3-libnbd.
#
#   ROUNDS=3    rounds
#   SECONDS_=10 of random reads
#   CACHE=128M  of the export
#   BIN=FILE    undercroft (default: target/release/undercroft)
set -euo pipefail
[ $# = 2 ] || { sed -n '2,/^set -e/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2; exit 2; }
image=$(realpath "$1") bin=$(realpath "${BIN:-target/release/undercroft}") rounds=${ROUNDS:-3} seconds=${SECONDS_:-10}
mkdir "$2"
work=$(realpath "$2")
export UNDERCROFT_CONFIG=$work/config
servers=()
trap 'kill "${servers[@]}" 2>/dev/null; wait; rm -rf "$work"' EXIT
"$bin" --repo "$work/repo" init >/dev/null
"$bin" --repo "$work/repo" backup --vm vm --disk root="$image" >/dev/null 2>&1
nbdkit -f -U "$work/nbdkit" --threads 16 file "$image" &
servers+=($!)
"$bin" --repo "$work/repo" export vm@latest:root --cache-size "${CACHE:-128M}" --nbd "unix:$work/undercroft" >/dev/null &
servers+=($!)
while ! [ -S "$work/undercroft" ] || ! [ -S "$work/nbdkit" ]; do sleep 0.1; done

for _ in $(seq "$rounds"); do
  for what in nbdkit undercroft; do
    uri="nbd+unix:///?socket=$work/$what"
    for to in null: "$work/copy"; do
      rm -f "$work/copy"
      /usr/bin/time -f "%e" -o "$work/time" nbdcopy "$uri" "$to"
      echo "$what $([ "$to" = null: ] && echo null || echo file) $(cat "$work/time")" >>"$work/results"
    done
    cmp -s "$work/copy" "$image" || { echo "$what: the copy differs" >&2; exit 1; }
    rm -f "$work/copy"
    fio --name=r --ioengine=nbd --uri="$uri" --rw=randread --bs=4k --iodepth=32 --time_based --runtime="$seconds" \
      --size=100% --randrepeat=0 --norandommap --output-format=json --output="$work/fio.json" >/dev/null
    python3 - "$work/fio.json" "$what" >>"$work/results" <<'P'
import json, sys
read = json.load(open(sys.argv[1]))["jobs"][0]["read"]
print(sys.argv[2], "iops", read["iops"])
print(sys.argv[2], "p99", read["clat_ns"]["percentile"]["99.000000"] / 1e6)
P
  done
done
for _ in 1 2 3 4 5; do
  /usr/bin/python3 - "$bin" "$work" >>"$work/results" <<'P'
import nbd, subprocess, sys, time
bin, work = sys.argv[1:]
start = time.monotonic()
export = subprocess.Popen([bin, "--repo", work + "/repo", "export", "vm@latest:root", "--nbd", "unix:" + work + "/first"],
                          stdout=subprocess.PIPE)
export.stdout.readline()
handle = nbd.NBD()
handle.connect_unix(work + "/first")
handle.pread(4096, 1 << 20)
print("undercroft first", (time.monotonic() - start) * 1000)
export.terminate()
export.wait()
P
done
python3 - "$work/results" <<'P'
import collections, statistics, sys
runs = collections.defaultdict(list)
for line in open(sys.argv[1]):
    what, key, value = line.split()
    runs[key, what].append(float(value))
print("| | nbdkit file | undercroft export | ratio |\n" + "| --- " * 4 + "|")
rows = [("null", "nbdcopy to null:, s", 1), ("file", "nbdcopy to a file, s", 1), ("iops", "random 4 KiB, QD 32, IOPS", 0), ("p99", "their p99, ms", 1)]
for key, text, is_time in rows:
    ours, theirs = (statistics.median(runs[key, what]) for what in ("undercroft", "nbdkit"))
    ratio = theirs / ours if is_time else ours / theirs
    print(f"| {text} | {theirs:.2f} | {ours:.2f} | {ratio:.2f}x |")
print(f"| command to first byte, ms | | {statistics.median(runs['first', 'undercroft']):.0f} | |")
P
