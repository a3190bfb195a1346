#!/bin/bash
# usage: install-check.sh BUILD_DIR: installs a build into an empty folder and compiles the README's first program against it
# with pkg-config alone, shared and static, as C and (headers only) as C++; then runs it on a short text. Closes with "1 passed, 0 failed, 0 skipped".
set -eu -o pipefail
BUILD=$(cd "$1" && pwd)
SOURCE=$(cd "$(dirname "$0")/.." && pwd)
FOLDER=$(mktemp -d "${TMPDIR:-/tmp}/birkhoff-install.XXXXXX")
trap 'rm -rf "$FOLDER"' EXIT
# DESTDIR and no other prefix: libtool installs modules only where they were configured to go.
make -C "$BUILD" -s install DESTDIR="$FOLDER" >/dev/null
PREFIX=$FOLDER$(sed -n 's/^prefix = //p' "$BUILD/Makefile")
export PKG_CONFIG_PATH=$PREFIX/lib/pkgconfig
sed -i "s|^prefix=.*|prefix=$PREFIX|" "$PREFIX/lib/pkgconfig/birkhoff.pc"
# shellcheck disable=SC2046
gcc -std=c11 -Wpedantic -Wall -Wextra -Werror "$SOURCE/doc/examples/train.c" -o "$PREFIX/train" $(pkg-config --cflags --libs birkhoff)
for example in embedded mhc_layer; do
  # shellcheck disable=SC2046
  gcc -std=c11 -Wpedantic -Wall -Wextra -Werror "$SOURCE/doc/examples/$example.c" -o "$PREFIX/$example" $(pkg-config --cflags --libs birkhoff) -lm
  LD_LIBRARY_PATH=$PREFIX/lib "$PREFIX/$example"
done
# shellcheck disable=SC2046
gcc -std=c11 "$SOURCE/doc/examples/train.c" -o "$PREFIX/train-static" $(pkg-config --cflags birkhoff) "$PREFIX/lib/libbirkhoff.a" $(pkg-config --static --libs-only-l birkhoff | sed 's/-lbirkhoff//') -lm -lpthread
if command -v g++ >/dev/null; then
  # shellcheck disable=SC2046
  g++ -std=c++17 -Wpedantic -Wall -Wextra -Werror "$SOURCE/doc/examples/forward.cpp" -o "$PREFIX/forward" $(pkg-config --cflags --libs birkhoff)
  # shellcheck disable=SC2046
  g++ -std=c++17 "$SOURCE/doc/examples/forward.cpp" -o "$PREFIX/forward-static" $(pkg-config --cflags birkhoff) "$PREFIX/lib/libbirkhoff.a" $(pkg-config --static --libs-only-l birkhoff | sed 's/-lbirkhoff//') -lm -lpthread
  LD_LIBRARY_PATH=$PREFIX/lib "$PREFIX/forward"
  "$PREFIX/forward-static"
fi
for header in "$PREFIX"/include/birkhoff/*.h; do
  gcc -std=c11 -Wpedantic -Wall -Wextra -Werror -I"$PREFIX/include" -x c -fsyntax-only "$header"
  if command -v g++ >/dev/null; then g++ -std=c++17 -Wpedantic -Wall -Wextra -Werror -I"$PREFIX/include" -x c++ -fsyntax-only "$header"; fi
done
seq 1 4000 >"$PREFIX/text"
LD_LIBRARY_PATH=$PREFIX/lib "$PREFIX/train" "$PREFIX/text"
"$PREFIX/train-static" "$PREFIX/text"
LD_LIBRARY_PATH=$PREFIX/lib "$PREFIX/bin/birkhoff" --version
[ -s "$PREFIX/share/man/man1/birkhoff.1" ]
echo "1 passed, 0 failed, 0 skipped"
