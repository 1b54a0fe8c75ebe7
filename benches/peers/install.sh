#!/bin/bash
# Installs what run.sh compares with: restic and borg from Debian, rustic from crates.io, benji from PyPI.
# rustic and benji go below ${XDG_CACHE_HOME:-~/.cache}/undercroft/peers; removing that uninstalls them.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
"$here/../../scripts/setup.sh" build bench

peers=${XDG_CACHE_HOME:-$HOME/.cache}/undercroft/peers
mkdir -p "$peers"

if [ ! -x "$peers/bin/rustic" ]; then
  echo "peers: compiling rustic (long: hundreds of crates)"
  # Its optional features (a terminal interface, WebDAV, metrics) do not touch a backup's speed.
  CARGO_TARGET_DIR=$peers/rustic-target cargo install rustic-rs@0.11.4 --locked --no-default-features --root "$peers"
  rm -rf "$peers/rustic-target"
fi

if [ ! -x "$peers/benji/bin/benji" ]; then
  echo "peers: installing benji"
  python3 -m venv "$peers/benji"
  # benji 0.17's own bounds name a ruamel.yaml that no current Python compiles: the rest of its bounds
  # are kept, that one is moved to the last version with the interface it calls.
  "$peers/benji/bin/pip" -q install 'setuptools<75' wheel
  "$peers/benji/bin/pip" -q install --no-deps 'benji==0.17.0'
  "$peers/benji/bin/pip" -q install 'ruamel.yaml>=0.17,<0.18' 'PrettyTable<1' 'sqlalchemy>=1.4.14,<2' 'setproctitle<2' \
    'python-dateutil<3' 'alembic>=1.0.5,<2' 'psycopg2-binary<3' 'argcomplete<2' 'sparsebitfield<1' 'cerberus<2' 'pycryptodome<4' \
    'pyparsing<3' 'semantic_version<3' 'dateparser<2' 'structlog' 'colorama<1' 'diskcache' 'attrs<22' 'zstandard'
fi
"$peers/bin/rustic" --version
"$peers/benji/bin/pip" list 2>/dev/null | grep -w benji
