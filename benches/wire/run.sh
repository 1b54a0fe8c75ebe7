#!/bin/bash
# run.sh CORPUS WORKDIR
#
# A repository behind a server on loopback against one in a directory, in turn, with the real program: backup of new
# data, a re-read of it, a restore to a new file. CORPUS is made by scripts/make-corpus; WORKDIR lies on the disk of
# the repositories and is removed at the end. Prints medians, and the directory's time by the server's.
#
#   ROUNDS=5   rounds
#   BIN=FILE   undercroft (default: target/release/undercroft)
#   PORT=N     the server's port (default: 17439)
#
# CPU seconds are those of both ends. Per round the order of the two changes.
set -euo pipefail
[ $# = 2 ] || { sed -n '2,/^set -e/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2; exit 2; }
disk=$1/web01-d1.raw
bin=$(realpath "${BIN:-target/release/undercroft}") port=${PORT:-17439} rounds=${ROUNDS:-5}
mkdir "$2"
work=$(realpath "$2")
export UNDERCROFT_CONFIG=$work/config
"$bin" repository serve --store "$work/store" --listen "127.0.0.1:$port" >"$work/serve.log" &
server=$!
trap 'kill $server 2>/dev/null; wait; rm -rf "$work"' EXIT
for _ in $(seq 100); do grep -q 'enroll' "$work/serve.log" && break; sleep 0.1; done
remote=quic://127.0.0.1:$port
"$bin" enroll "$remote" --role admin --token "$(grep -o 'uct1[0-9a-z]*' "$work/serve.log")" >/dev/null

server_cpu() { awk -v hz="$(getconf CLK_TCK)" '{ print ($14 + $15) / hz }' "/proc/$server/stat"; }

measure() { # STEP WHERE COMMAND...
  local step=$1 where=$2; shift 2
  sync
  local before; before=$(server_cpu)
  /usr/bin/time -o "$work/time" -f '%e %U %S %M' "$bin" "$@" >/dev/null 2>&1
  echo "$step $where $(cat "$work/time") $before $(server_cpu)" >>"$work/results"
}

for round in $(seq "$rounds"); do
  order="local quic"; [ $((round % 2)) = 1 ] || order="quic local"
  for where in $order; do
    case $where in local) repo=$work/local$round ;; quic) repo=$remote/main$round ;; esac
    "$bin" --repo "$repo" init >/dev/null
    measure backup "$where" --repo "$repo" backup --vm web01 --disk root="$disk"
  done
  for step in re-read restore; do
    for where in $order; do
      case $where in local) repo=$work/local$round ;; quic) repo=$remote/main$round ;; esac
      if [ $step = re-read ]; then
        measure re-read "$where" --repo "$repo" backup --vm web01 --disk root="$disk"
      else
        measure restore "$where" --repo "$repo" restore web01@latest --disk root --to "$work/restored.raw"
        rm -f "$work/restored.raw"
      fi
    done
  done
  # What the server holds open goes at the end.
  rm -rf "$work/local$round"
done

python3 - "$work/results" <<'P'
import collections, statistics, sys
runs = collections.defaultdict(list)
for line in open(sys.argv[1]):
    step, where, wall, user, system, rss, before, after = line.split()
    runs[step, where].append((float(wall), float(user) + float(system) + float(after) - float(before), int(rss) / 1024))
print("| step | directory, s | server, s | directory / server | CPU s: directory | CPU s: server, both ends | peak MiB of the client |")
print("| --- | --- | --- | --- | --- | --- | --- |")
for step in ("backup", "re-read", "restore"):
    (lw, lc, _), (qw, qc, qm) = ([statistics.median(column) for column in zip(*runs[step, where])] for where in ("local", "quic"))
    pairs = statistics.median(a[0] / b[0] for a, b in zip(runs[step, "local"], runs[step, "quic"]))
    print(f"| {step} | {lw:.2f} | {qw:.2f} | {pairs:.2f}x | {lc:.2f} | {qc:.2f} | {qm:.0f} |")
P
