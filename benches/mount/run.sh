#!/bin/bash
# run.sh IMAGE WORKDIR
#
# A mounted snapshot against `restore` and the raw file: reads in sequence, random reads of 4 KiB at queue depth 32, and
# the time from the command to the first byte with one and with 10,000 snapshots. IMAGE is a raw image; WORKDIR is made
# and removed at the end. Needs root and fio. Prints medians; cold means that the kernel's page cache was dropped.
#
#   ROUNDS=5   rounds
#   SECONDS_PER_RUN=10   of random reads
#   BIN=FILE   undercroft (default: target/release/undercroft)
#   MANY=FILE  the example many_snapshots (default: target/release/examples/many_snapshots; without it that part is left out)
set -euo pipefail
[ $# = 2 ] || { sed -n '2,/^set -e/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2; exit 2; }
image=$(realpath "$1") bin=$(realpath "${BIN:-target/release/undercroft}") rounds=${ROUNDS:-5}
many=${MANY:-target/release/examples/many_snapshots} run=${SECONDS_PER_RUN:-10}
mkdir "$2"
work=$(realpath "$2")
mkdir "$work/mnt" "$work/raw"
export XDG_STATE_HOME=$work/state UNDERCROFT_REPO=$work/repo
trap 'umount "$work/mnt" 2>/dev/null || true; umount "$work/raw/disk" 2>/dev/null || true; wait; rm -rf "$work"' EXIT
"$bin" init >/dev/null
"$bin" backup --vm vm --disk root="$image" --progress none >/dev/null 2>&1
disk=$work/mnt/vm/latest/root.raw

mounted() { "$bin" mount "$work/mnt" >/dev/null; }
unmounted() {
  for _ in $(seq 100); do umount "$work/mnt" 2>/dev/null && return; sleep 0.1; done
  exit 1
}
cold() { sync; echo 1 >/proc/sys/vm/drop_caches; }
note() { # WHAT COMMAND...
  local what=$1; shift
  /usr/bin/time -f "$what %e" -a -o "$work/results" "$@" >/dev/null 2>&1
}
read_data() { python3 - "$1" <<'P'
import os, sys
file, at = os.open(sys.argv[1], os.O_RDONLY), 0
size = os.fstat(file).st_size
while at < size:
    try: at = os.lseek(file, at, os.SEEK_DATA)
    except OSError: break
    end = os.lseek(file, at, os.SEEK_HOLE)
    while at < end: at += len(os.pread(file, min(1 << 20, end - at), at))
P
}
export -f read_data
for _ in $(seq "$rounds"); do
  rm -f "$work/restored"
  cold; note restore "$bin" restore vm@latest --to "$work/restored" --progress none
  cold; mounted; note data bash -c "read_data $disk"; unmounted
  cold; mounted; note whole dd if="$disk" of=/dev/null bs=1M; unmounted
  cold; mounted; note direct dd if="$disk" of=/dev/null bs=1M iflag=direct; unmounted
done
random() { # WHAT FILE
  fio --name=r --filename="$2" --rw=randread --bs=4k --iodepth=32 --ioengine=libaio --direct=1 --readonly \
    --runtime="$run" --time_based --randrepeat=1 --output-format=json |
    python3 -c 'import json, sys
read = json.load(sys.stdin)["jobs"][0]["read"]
print("random-" + sys.argv[1], read["iops"], read["clat_ns"]["percentile"]["99.000000"] / 1e6)' "$1" >>"$work/random"
}
touch "$work/raw/disk"
nbdfuse "$work/raw/disk" --socket-activation nbdkit -f file "$image" & # ends with the mount
for _ in $(seq 100); do [ -s "$work/raw/disk" ] && break; sleep 0.1; done
cold; mounted; random mount "$disk"; random mount-again "$disk"; unmounted
cold; random nbdfuse "$work/raw/disk"
cold; random raw "$image"
first_byte() { # WHAT
  for _ in $(seq "$rounds"); do
    mounted; unmounted
    note "$1" bash -c "$bin mount $work/mnt >/dev/null && head -c 1 $disk"
    unmounted
  done
}
first_byte first-byte-1
[ ! -x "$many" ] || { "$many" "$work/repo" 9999 && first_byte first-byte-10000; }
python3 - "$work" <<'P'
import collections, statistics, sys
runs = collections.defaultdict(list)
for line in open(sys.argv[1] + "/results"):
    what, seconds = line.split()
    runs[what].append(float(seconds))
median = {what: statistics.median(times) for what, times in runs.items()}
for what, seconds in median.items():
    print(f"{what:18} {seconds:7.3f} s  restore / this {median['restore'] / max(seconds, 0.001):5.2f}")
for line in open(sys.argv[1] + "/random"):
    what, iops, p99 = line.split()
    print(f"{what:18} {float(iops):9.0f} reads/s  p99 {float(p99):7.2f} ms")
P
