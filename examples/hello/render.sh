#!/bin/sh
# render.sh DIRECTORY: prints the picture, and keeps it in DIRECTORY for the next time.
set -eu
kept=$1/$(sha256sum picture.awk | cut -c 1-16)
if [ ! -e "$kept" ]; then
	echo 'rendering' >&2
	# Another build may share the directory: each writes a file of its own, and moves it when it is whole.
	new=$(mktemp "$1/XXXXXX")
	awk -f picture.awk > "$new"
	mv "$new" "$kept"
fi
cat "$kept"
