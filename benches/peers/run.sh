#!/bin/bash
# run.sh CORPUS OUT.json [PEER...]
#
# The same work by Undercroft and by others, on the same machine in the same run. CORPUS is made by
# scripts/make-corpus; the others are installed by install.sh, and those that are missing are left out.
#
# Per peer and round, in a new repository:
#   full, day2, day3   web01's three days            (peers read the whole file every day; it is always disk.raw)
#   restore            day 3 into a new file, which is compared with the image
#   size               the repository after web02 day 1 (if the corpus has it) and db01 days 1 and 2 besides
# benji and undercroft-cbt get the changed blocks on all days but the first.
#
# Page cache warm, file systems synced before each step, rounds interleaved; the result is the median. zstd at
# level 1 where a peer lets one choose; no encryption where it can be turned off (restic and rustic always encrypt).
#
#   ROUNDS=3           rounds
#   PEERS_WORK=DIR     where repositories and restored files go (default: OUT.json.work; removed at the end)
#   BIN=FILE           undercroft (default: target/release/undercroft)
#   BENJI_BLOCK=BYTES  benji's block size (default 4194304, benji's own)
set -euo pipefail

if [ $# -lt 2 ]; then sed -n '2,/^set -e/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2; exit 2; fi

# A file must have one name on all days, or peers take it for another. A bind mount gives it that without a copy.
if [ "$(id -u)" = 0 ] && [ "${PEERS_MOUNTS:-}" = "" ] && unshare --mount true 2>/dev/null; then
  PEERS_MOUNTS=private exec unshare --mount --propagation private bash "$0" "$@"
fi

here=$(cd "$(dirname "$0")" && pwd)
"$here/../../scripts/setup.sh" --check bench || { echo "peers: run benches/peers/install.sh" >&2; exit 1; }
corpus=$(realpath "$1")
out=$(realpath -m "$2")
shift 2
work=${PEERS_WORK:-$out.work}
rounds=${ROUNDS:-3}
cached=${XDG_CACHE_HOME:-$HOME/.cache}/undercroft/peers
undercroft=$(realpath -m "${BIN:-$here/../../target/release/undercroft}")
rustic=$(command -v rustic || echo "$cached/bin/rustic")
benji=$(command -v benji || echo "$cached/benji/bin/benji")

mkdir -p "$work"
work=$(realpath "$work")
export TMPDIR=$work/tmp
results=$work/results.tsv
: >"$results"

# ---- the peers: available, version, init, backup VM DAY, restore VM FILE (its latest day) -------------------
# $disk is the file to back up, $repo the repository; init runs in an empty $home.

undercroft_available() { [ -x "$undercroft" ]; }
undercroft_version() { "$undercroft" --version; }
undercroft_init() { "$undercroft" --repo "$repo" init; }
undercroft_backup() { timed "$undercroft" --repo "$repo" backup --vm "$1" --disk root="$disk"; }
undercroft_restore() { timed "$undercroft" --repo "$repo" restore "$1@latest" --disk root --to "$2"; }

undercroft_cbt_available() { undercroft_available; }
undercroft_cbt_version() { undercroft_version; }
undercroft_cbt_init() { undercroft_init; }
undercroft_cbt_backup() {
  if [ -e "$changed" ]; then
    timed "$undercroft" --repo "$repo" backup --vm "$1" --disk root="$disk" --parent "$1@latest" --changed-blocks root="$changed"
  else
    undercroft_backup "$@"
  fi
}
undercroft_cbt_restore() { undercroft_restore "$@"; }

restic_available() { command -v restic >/dev/null; }
restic_version() { restic version; }
restic_init() { restic init --repository-version 2; }
restic_backup() { timed restic backup --tag "$1" --host "$1" "$disk"; } # its zstd has no level 1; "auto" is the default
restic_restore() { mkdir -p "$2.tree"; timed restic restore latest --host "$1" --target "$2.tree"; flatten "$2"; }

rustic_available() { [ -x "$rustic" ]; }
rustic_version() { "$rustic" --version; }
rustic_init() { "$rustic" init --set-compression 1; }
rustic_backup() { timed "$rustic" backup --host "$1" "$disk"; }
rustic_restore() { mkdir -p "$2.tree"; timed "$rustic" restore --filter-host "$1" latest "$2.tree"; flatten "$2"; }

borg_available() { command -v borg >/dev/null; }
borg_version() { borg --version; }
borg_init() { borg init --encryption none; }
borg_backup() { timed borg create --compression zstd,1 "::$1-$2" "$disk"; }
borg_restore() { mkdir -p "$2.tree"; (cd "$2.tree" && timed borg extract --sparse "::$1-$(cat "$home/day.$1")"); flatten "$2"; }

benji_available() { [ -x "$benji" ]; }
benji_version() { echo "benji $("${benji%/*}/python3" -c 'import importlib.metadata as m; print(m.version("benji"))' 2>/dev/null || echo ?)"; }
benji_init() {
  mkdir -p "$repo"
  cat >"$home/benji.yaml" <<Y
configurationVersion: '1'
databaseEngine: sqlite:///$repo/benji.sqlite
blockSize: ${BENJI_BLOCK:-4194304}
defaultStorage: files
storages:
  - name: files
    module: file
    storageId: 1
    configuration:
      path: $repo
      activeTransforms: [zstd]
transforms:
  - name: zstd
    module: zstd
    configuration: {level: 1}
ios:
  - name: file
    module: file
Y
  "$benji" -c "$home/benji.yaml" database-init
}
benji_backup() {
  local base=()
  if [ -e "$changed" ]; then
    python3 "$here/report.py" hints "$changed" >"$home/hints"
    base=(-f "$(cat "$home/benji.$1")" -r "$home/hints")
  fi
  timed "$benji" -m -c "$home/benji.yaml" backup "${base[@]}" "file:$disk" "$1"
  jq -r '.versions[0].uid' "$work/stdout" >"$home/benji.$1"
}
benji_restore() { timed "$benji" -c "$home/benji.yaml" restore --sparse "$(cat "$home/benji.$1")" "file:$2"; }

# What copying alone costs: the floor of a restore.
cp_available() { true; }
cp_version() { cp --version | head -1; }
cp_init() { true; }
cp_backup() { true; }
cp_restore() { timed cp --sparse=always "$disk" "$2"; }

# ---- measuring -------------------------------------------------------------------------------------------

peers=("$@")
[ $# != 0 ] || peers=(undercroft undercroft_cbt restic rustic borg benji cp)

# Runs a command and writes down what it took, under the names in $round, $peer and $step.
timed() {
  sync
  if ! /usr/bin/time -o "$work/time" -f '%e\t%U\t%S\t%M' "$@" >"$work/stdout" 2>"$work/stderr"; then
    echo "peers: $peer failed at $step: $*" >&2
    tail -20 "$work/stdout" "$work/stderr" >&2
    return 1
  fi
  printf '%s\t%s\t%s\t%s\n' "$round" "$peer" "$step" "$(tail -1 "$work/time")" >>"$results"
}
# Peers that restore whole paths: the one file they wrote becomes FILE.
flatten() { mv "$(find "$1.tree" -type f -name disk.raw)" "$1"; rm -rf "$1.tree"; }

disk=$work/disk.raw
present() { # VM DAY: its image appears at $disk, in the page cache
  local image=$corpus/$1-d$2.raw
  if [ "${PEERS_MOUNTS:-}" = private ]; then
    umount "$disk" 2>/dev/null || true
    rm -f "$disk"
    touch "$disk"
    mount --bind -o ro "$image" "$disk"
  else
    rm -f "$disk"
    ln "$image" "$disk" 2>/dev/null || cp --sparse=always "$image" "$disk"
  fi
  changed=$corpus/$1-d$2.cbt
  cat "$disk" >/dev/null
}

one_round() { # of $peer
  home=$work/home repo=$work/repository
  rm -rf "$home" "$repo" "$TMPDIR" "$work/restored.raw"
  mkdir "$home" "$TMPDIR"
  export HOME=$home XDG_CACHE_HOME=$home/cache
  export RESTIC_REPOSITORY=$repo RESTIC_PASSWORD=peers RUSTIC_REPOSITORY=$repo RUSTIC_PASSWORD=peers BORG_REPO=$repo
  export BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes BORG_RELOCATED_REPO_ACCESS_IS_OK=yes
  "${peer}_init" >"$work/stdout" 2>"$work/stderr" || { cat "$work/stdout" "$work/stderr" >&2; return 1; }
  local day
  for day in 1 2 3; do
    present web01 $day
    case $day in 1) step=full ;; *) step=day$day ;; esac
    "${peer}_backup" web01 $day
    echo $day >"$home/day.web01"
  done
  step=restore
  "${peer}_restore" web01 "$work/restored.raw"
  cmp "$work/restored.raw" "$corpus/web01-d3.raw"
  rm "$work/restored.raw"
  if [ -e "$repo" ]; then
    step=
    for image in web02-1 db01-1 db01-2; do
      [ -e "$corpus/${image%-*}-d${image#*-}.raw" ] || continue
      present "${image%-*}" "${image#*-}"
      step=more-$image
      "${peer}_backup" "${image%-*}" "${image#*-}"
    done
    sync
    printf '%s\t%s\tsize\t%s\t0\t0\t0\n' "$round" "$peer" "$(du -sB1 "$repo" | cut -f1)" >>"$results"
  fi
}

able=()
for peer in "${peers[@]}"; do
  if "${peer}_available"; then
    able+=("$peer")
    printf '0\t%s\tversion\t%s\n' "$peer" "$("${peer}_version" | head -1)" >>"$results"
  else
    echo "peers: $peer is not here: left out" >&2
  fi
done
user_home=$HOME user_cache=${XDG_CACHE_HOME:-}
for ((round = 1; round <= rounds; round++)); do
  for peer in "${able[@]}"; do
    echo "peers: round $round of $rounds: $peer" >&2
    one_round
    umount "$disk" 2>/dev/null || true
  done
done
export HOME=$user_home XDG_CACHE_HOME=$user_cache
python3 "$here/report.py" report "$results" "$corpus/manifest.json" "$out"
rm -rf "$work"
