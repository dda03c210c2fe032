#!/bin/sh
# A host for tests, one program for all operations: a VM is a folder with what it was made from and what it is doing. Its
# "guest" appends a line to the first disk when it starts.
set -eu
dir=$FAKEHOST/$(printf %s "$1" | od -An -tx1 | tr -d ' \n')
[ "$1" = "$SITREP_VM" ]
power() { cat "$dir/power"; }
case $SITREP_OPERATION in
state) if [ -e "$dir/power" ]; then power; else echo absent; fi ;;
create)
	new=$(cat)
	if [ -e "$dir/power" ] && [ "$(power)" != off ] && [ "$(cat "$dir/definition")" != "$new" ]; then
		echo "it runs, as another one" >&2
		exit 1
	fi
	mkdir -p "$dir"
	printf %s "$new" >"$dir/definition"
	printf %s "$SITREP_DISK_1_PATH" >"$dir/disk"
	printf %s "$SITREP_DISPOSABLE" >"$dir/disposable"
	[ -e "$dir/power" ] || echo off >"$dir/power"
	;;
start)
	[ "$(cat "$dir/disposable")" = 1 ] || echo written >>"$(cat "$dir/disk")"
	echo running >"$dir/power"
	;;
stop) echo off >"$dir/power" ;;
delete) rm -r "$dir" ;;
freeze) echo paused >"$dir/power" ;;
thaw) echo running >"$dir/power" ;;
*) exit 1 ;;
esac
