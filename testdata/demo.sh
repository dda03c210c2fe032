#!/bin/sh
# The main job on real images: a VM with two disks made by Windows (NTFS in a VHDX and in a fixed VHD) is protected, its
# disks are changed, deltas bring the replica up to date, and in the end the replica is compared with the source.
# Works in a new folder and leaves it there; needs Go. With qemu-img and qemu-io it also writes into the VHDX and lets
# them compare. Usage: testdata/demo.sh [FOLDER]
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
dir=${1:-$(mktemp -d)}
mkdir -p "$dir/disks"
cd "$top"
go build -o "$dir/sitrep" .
go run ./testdata/unbz2 testdata/disk/ntfs-parent.vhdx.bz2 "$dir/disks/web01-os.vhdx"
go run ./testdata/unbz2 testdata/disk/ntfs-fixed.vhd.bz2 "$dir/disks/web01-data.vhd"
cp testdata/demo/site.yaml "$dir/"
cd "$dir"

run() { printf '\n$ %s\n' "$*"; "$@"; }
sitrep() { run ./sitrep "$@"; }
have() { command -v "$1" >/dev/null; }

same() { # same FORMAT SOURCE REPLICA
	if have qemu-img; then
		run qemu-img compare -f "$1" -F vpc "$2" "$3"
	else
		echo "(qemu-img is not here to compare $2: apt-get install qemu-utils)"
	fi
}

sitrep check
sitrep protect web01 --dry-run
sitrep protect web01
for round in 1 2; do
	run dd if=/dev/urandom of=disks/web01-data.vhd bs=64k seek=$((8 * round)) count=2 conv=notrunc status=none
	if have qemu-io; then
		run qemu-io -f vhdx -c "write -q -P $((64 + round)) $((round * 512))k 128k" disks/web01-os.vhdx
	fi
	sitrep delta web01
	same vhdx disks/web01-os.vhdx dr/web01/os.vhd
	same vpc disks/web01-data.vhd dr/web01/data.vhd
done
sitrep delta web01
sitrep points web01
sitrep verify web01 --against-source
sitrep status
sitrep jobs
printf '\nEverything is in %s\n' "$dir"
