#!/usr/bin/env bash
# Joins the parts of a bundle that lie beside this script.
# Usage: bash join.sh [DIR]    where the bundle goes (default: bundle beside this script)
set -euo pipefail
fail() { echo "join.sh: error: $*" >&2; exit 2; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
target=${1:-$here/bundle}
[ ! -e "$target" ] || fail "$target: is there already; name another folder"
if command -v sha256sum >/dev/null; then sum=(sha256sum); else sum=(shasum -a 256); fi
[ -f "$here/SHA256SUMS" ] && [ "$(grep -c . "$here/SHA256SUMS")" = '@FILES@' ] ||
  fail "$here: SHA256SUMS is not whole; copy it again"
damaged=$(cd "$here" && { LC_ALL=C "${sum[@]}" -c SHA256SUMS 2>/dev/null || true; } | grep -v ': OK$' | sed 's/: FAILED.*//' || true)
[ -z "$damaged" ] || fail "$here: $(grep -c . <<<"$damaged") of @FILES@ parts, such as $(head -n 1 <<<"$damaged"), are" \
  "missing or have another SHA-256; copy them again"
rm -rf "$target.part"
mkdir -p "$target.part" || fail "$target.part: cannot be made"
cat "$here"/bundle.tar.gz.* | tar -xz -C "$target.part" || fail "$target.part: the parts cannot be unpacked (see above)"
mv "$target.part" "$target"
echo "joined; to install: bash '$target/install.sh'"
