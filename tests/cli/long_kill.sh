#!/bin/sh
# kill -9 at twenty random moments of a run that saves every step. For the long level: no part of `make check`.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/kill.sh"
kills 20
finish
