#!/bin/sh
# kill -9 at three moments; long_kill.sh has twenty.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
. "$here/kill.sh"
kills 3
finish
