#!/bin/bash
# xen-orchestra.sh UNDERCROFT     backs up an XVA that Xen Orchestra's writer made, and compares
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
undercroft=$(realpath "$1")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"

npm init --yes >npm.log
npm install --no-audit --no-fund @xen-orchestra/xva@1 >>npm.log
cp "$here/xen-orchestra.mjs" .

# A disk with blocks of zeros, and one whose last block is short, which the writer fills up.
head -c 3M /dev/urandom >root.raw
truncate -s 20M root.raw
head -c 5M /dev/urandom >>root.raw
head -c 2500096 /dev/urandom >data.raw
node xen-orchestra.mjs vm.xva root.raw data.raw

export UNDERCROFT_REPO=$scratch/repo
"$undercroft" init >/dev/null
"$undercroft" backup --xva vm.xva
"$undercroft" restore 'from Xen Orchestra@latest' --to restored/ >/dev/null
# It counts places from 1, and disks in whole MiB.
cmp root.raw restored/xvdb.raw
truncate -s %1M data.raw
cmp data.raw restored/xvdc.raw
"$undercroft" restore 'from Xen Orchestra@latest' --xva again.xva >/dev/null
tar -xOf again.xva ova.xml | cmp - restored/ova.xml
tar -tf again.xva | sort >ours
tar -tf vm.xva | sort | cmp - ours
echo "Xen Orchestra's XVA: read, restored, written again with the same members"
