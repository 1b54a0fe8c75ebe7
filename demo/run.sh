#!/bin/bash
# Three days of two virtual machines: backed up, restored, compared, thinned out, collected, restored again.
# Called by `make demo`; every command is shown before it runs.
#
#   DEMO_DIR=DIR     where to work (default: demo-data in this checkout; a repository in it is replaced)
#   DEMO_CORPUS=DIR  take disks made by scripts/make-corpus from here, instead of making some
#   BIN=FILE         the program (default: target/release/undercroft)
set -euo pipefail
cd "$(dirname "$0")/.."

work=${DEMO_DIR:-demo-data}
undercroft=$(realpath "${BIN:-target/release/undercroft}")
if [ ! -x "$undercroft" ]; then
  echo "demo: $undercroft is missing; run: make build" >&2
  exit 1
fi
mkdir -p "$work"
work=$(realpath "$work")
if [ -n "${DEMO_CORPUS:-}" ]; then corpus=$(realpath "$DEMO_CORPUS"); else corpus=$work/corpus; fi
restored=$work/restored
export UNDERCROFT_REPO=$work/repository

if [ -t 1 ]; then bold=$'\e[1m' plain=$'\e[0m'; else bold='' plain=''; fi
chapter() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
# Shows a command as a person would type it (in the working directory), then runs it.
run() {
  local shown=$* status=0
  shown=${shown//$work\//}
  printf '\n%s$ undercroft %s%s\n' "$bold" "$shown" "$plain"
  "$undercroft" "$@" || status=$?
  if [ $status != 0 ]; then
    echo "demo: exit code $status" >&2
    exit 1
  fi
}

# What make-corpus wrote down of an image: sha256_of VM DAY. An image has a line of its own.
sha256_of() { sed -n "s/.*\"file\": *\"$1-d$2.raw\".*\"sha256\": *\"\([0-9a-f]*\)\".*/\1/p" "$corpus/manifest.json"; }

checked=0
restore_and_compare() { # SNAPSHOT VM DAY
  local expected actual
  rm -f "$restored/disk.raw"
  run restore "$1" --disk root --to "$restored/disk.raw"
  expected=$(sha256_of "$2" "$3")
  actual=$(sha256sum <"$restored/disk.raw" | cut -d' ' -f1)
  if [ -z "$expected" ] || [ "$actual" != "$expected" ]; then
    echo "demo: $2 day $3 came back DIFFERENT: sha256 $actual, was ${expected:-not in the manifest}" >&2
    exit 1
  fi
  echo "same bytes: $2 day $3, sha256 ${actual:0:16}…"
  rm "$restored/disk.raw"
  checked=$((checked + 1))
}
# The ids of a VM's snapshots, oldest first: day 1, 2, 3.
snapshot_ids() {
  "$undercroft" --json snapshots --vm "$1" | tr -d ' \n' | grep -oE '"id":"[0-9a-f]{16,}"' | grep -oE '[0-9a-f]{16,}'
}

if [ ! -e "$corpus/manifest.json" ]; then
  chapter "Disks of two virtual machines, on three days"
  scripts/make-corpus --small "$corpus"
fi
rm -rf "${UNDERCROFT_REPO:?}" "${restored:?}"
mkdir "$restored"
cd "$work"

chapter "A repository"
run init

chapter "web01, three days, the whole disk read every day: what is known already is not stored again"
for day in 1 2 3; do run backup --vm web01 --disk root="$corpus/web01-d$day.raw"; done

chapter "db01, three days: on days 2 and 3 only the blocks that the hypervisor says have changed are read"
run backup --vm db01 --disk root="$corpus/db01-d1.raw"
for day in 2 3; do
  run backup --vm db01 --disk root="$corpus/db01-d$day.raw" --parent db01@latest --changed-blocks root="$corpus/db01-d$day.cbt"
done

chapter "What is there"
run snapshots
mapfile -t web01 < <(snapshot_ids web01)
mapfile -t db01 < <(snapshot_ids db01)
if [ "${#web01[@]}" != 3 ] || [ "${#db01[@]}" != 3 ]; then
  echo "demo: three snapshots of each VM were expected: web01 has ${#web01[@]}, db01 ${#db01[@]}" >&2
  exit 1
fi
run stats

chapter "Every day comes back as it was; an increment restores like a full backup"
for day in 1 2 3; do restore_and_compare "${web01[day - 1]}" web01 $day; done
for day in 1 2; do restore_and_compare "${db01[day - 1]}" db01 $day; done
restore_and_compare db01@latest db01 3

chapter "Everything stored is read, decoded and hashed again"
run verify --deep

chapter "What changed on db01 from day 2 to day 3"
run diff "${db01[1]}" "${db01[2]}"

chapter "The middle day is dropped. It was the parent of day 3: nothing hangs on it any more"
run forget "${web01[1]}" "${db01[1]}"
run gc
for day in 1 3; do
  restore_and_compare "${web01[day - 1]}" web01 $day
  restore_and_compare "${db01[day - 1]}" db01 $day
done
run verify

chapter "Figures"
run stats
logical=$(du -cb --apparent-size "$corpus"/{web01,db01}-d?.raw | tail -1 | cut -f1)
allocated=$(du -cB1 "$corpus"/{web01,db01}-d?.raw | tail -1 | cut -f1)
stored=$(du -sB1 "$UNDERCROFT_REPO" | cut -f1)
awk -v l="$logical" -v a="$allocated" -v s="$stored" 'BEGIN {
  printf "\nsix disks: %.0f MiB, of which %.0f MiB allocated; the repository takes %.0f MiB on disk, 1/%.1f of the allocated\n",
    l / 1048576, a / 1048576, s / 1048576, a / s }'
printf '%s%d restores, all byte for byte what was backed up.%s\n' "$bold" $checked "$plain"
