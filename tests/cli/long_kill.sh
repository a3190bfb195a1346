#!/bin/sh
# kill -9 at twenty random moments of a run that saves every step. For the long level: no part of `make check`.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
. "$here/kill.sh"
kills 20
finish
