#!/bin/bash
# cargo-tools.sh TOOL...
#
# Installs the cargo subcommands that are missing (cargo-deny, cargo-fuzz), in the versions this
# project was last checked with. They are compiled in a directory of their own, so that
# `make clean` and other checkouts leave them alone.
set -euo pipefail

version_of() {
  case $1 in
    cargo-deny) echo 0.20.2 ;;
    cargo-fuzz) echo 0.13.2 ;;
    *) echo "cargo-tools: no version is given for $1" >&2; exit 2 ;;
  esac
}

for tool in "$@"; do
  version=$(version_of "$tool")
  command -v "$tool" >/dev/null && continue
  echo "cargo-tools: compiling $tool $version (once per machine; minutes)"
  CARGO_TARGET_DIR=${XDG_CACHE_HOME:-$HOME/.cache}/undercroft/tools-target \
    cargo install --quiet --locked "$tool@$version"
done
