#!/bin/sh
# kill -9 at three moments; long_kill.sh has twenty.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/kill.sh"
kills 3
finish
