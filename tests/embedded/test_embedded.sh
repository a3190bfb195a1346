#!/bin/sh
# doc/examples/embedded.c linked statically, as a firmware would be: what it and the library's part of it ask of their surroundings is the
# pure part of the C library and the example's own write(); run, it calls no allocator, thread, file, loader, clock or environment.
# Prints sizes and memory. Environment as in tests/cli/lib.sh; CC, CFLAGS.
. "${TOP_SRCDIR:-$(cd "$(dirname "$0")/../.." && pwd)}/tests/cli/lib.sh"
CC=${CC:-cc} CFLAGS=${CFLAGS:--O2}
LIB=$TOP_BUILDDIR/.libs/libbirkhoff.a
EXAMPLES=$TOP_SRCDIR/doc/examples
HERE=$TOP_SRCDIR/tests/embedded
skip() {
  echo "skipped: $1"
  exit 77
}
[ -f "$LIB" ] || skip "this build has no static library"
nm -u "$LIB" 2>/dev/null | grep -q cblas_ && skip "dense products go to a BLAS, which has threads of its own (configure --with-blas=no)"
case $CFLAGS in *-fsanitize*) skip "a sanitizer's run-time library is not linked statically" ;; esac

# All of the C library that needs no operating system; compilers may add a few (memcpy, sincos, ...).
PURE='_GLOBAL_OFFSET_TABLE_ __cpu_indicator_init __cpu_model __ctype_b_loc __stack_chk_fail
  memchr memcmp memcpy memmove memset __memcpy_chk __memset_chk __snprintf_chk __vsnprintf_chk stpcpy strcat strchr strcmp strcpy strcspn strerror strlen strncmp strpbrk strrchr strspn strstr
  snprintf vsnprintf strtod strtoll localeconv
  ceil cos erf exp exp2 expf expm1 fabs floor fma fmaf fmax fmaxf fmin fminf frexp ldexp log log1p log2 logf lrint nearbyint pow rint
  round roundf sin sincos sqrt sqrtf tanh tanhf trunc'

# compile NAME SOURCE
compile() {
  name=$1
  shift
  # shellcheck disable=SC2086
  $CC $CFLAGS -std=c11 -Wall -Wextra -Werror -I"$TOP_SRCDIR/core/include" -c "$@" -o "$name.o" >out 2>&1 || fail "$name does not compile" out
}

# whole NAME: NAME.o and what it needs of the library as one object; what that leaves open goes to NAME.open.
whole() {
  $CC -r -nostdlib -o "$1.whole.o" "$1.o" "$LIB" >out 2>&1 || fail "$1: partial link" out
  nm -u "$1.whole.o" | awk '{ print $NF }' | sort -u >"$1.open"
}
foreign() { # NAME: of NAME.open what is not in PURE
  echo "$PURE" | tr -s ' \n' '\n\n' | sed '/^$/d' | sort -u >pure
  comm -23 "$1.open" pure | tr '\n' ' '
}

compile embedded "$EXAMPLES/embedded.c"
compile traps "$HERE/traps.c"
compile hosted "$EXAMPLES/train.c"
whole embedded
whole hosted
equal "what the program asks of its surroundings" "$(foreign embedded)" "write "
# The check can fail: an ordinary program's needs are found.
for symbol in pthread_create aligned_alloc open getenv clock_gettime; do
  has "train.c needs $symbol" "^$symbol\$" hosted.open
done

WRAP=$(sed -n 's/^TRAP(\(.*\))$/-Wl,--wrap=\1/p' "$HERE/traps.c" | tr '\n' ' ')
# shellcheck disable=SC2086
link_static() { $CC $CFLAGS -static -Wl,--gc-sections "$@" -lm >link 2>&1; }
# shellcheck disable=SC2086
if link_static -Wl,--wrap=main $WRAP -o trapped embedded.o traps.o "$LIB"; then pass; else fail "static link with traps" link; fi
if link_static -o plain embedded.o "$LIB"; then pass; else fail "static link" link; fi

ok "the program runs and calls nothing forbidden" ./trapped
cp out trapped.out
ok "the program as it is" ./plain
same "both say the same" out trapped.out
first=$(sed -n 's/^step 1 loss //p' out)
last=$(sed -n 's/^step [0-9]* loss //p' out | tail -n 1)
holds "the loss falls" "0${last} > 0 && 0${last} < 0.6 * 0${first}"
has "text is generated" '^generated: In the .' out
has "memory is reported" '^memory [0-9]* given, [0-9]* touched' out
has "no block is lost" '^all memory was given back$' out

# The traps can fail: this one allocates.
echo '#include <stdlib.h>
int main(void) { void *volatile p = malloc(1); return p == 0; }' >allocates.c
compile allocates allocates.c
# shellcheck disable=SC2086
link_static -Wl,--wrap=main $WRAP -o allocates allocates.o traps.o -lpthread -ldl || fail "allocates: link" link
./allocates >out2 2>err
equal "an allocation is trapped" "$? $(cat err)" "3 forbidden call: malloc"

cp plain stripped
strip stripped
echo "the program with the C library:"
size plain
echo "the example and the library's part of it, without the C library:"
size embedded.whole.o
echo "stripped file: $(wc -c <stripped) bytes"
cat out
finish
