#!/bin/bash
# Times sitrep against its peers, in turn, round after round, on one disk with real files and its second day (mkimages.sh).
# Every timed command ends with a sync of what it wrote. Prints medians in seconds and ratios; quote the ratios.
#   bench.sh [-n ROUNDS] [-s SIZE_GIB] [-d DATA_MIB] [-c] DIR        -c: also with cold caches (needs root)
# DIR needs about five times DATA_MIB of space; images that lie there from an earlier call are used again.
set -euo pipefail
rounds=5 size=8 data=2048 cold=
while getopts n:s:d:c o; do case $o in
	n) rounds=$OPTARG ;; s) size=$OPTARG ;; d) data=$OPTARG ;; c) cold=1 ;; *) exit 2 ;;
esac; done
shift $((OPTIND - 1))
[ $# = 1 ] || { sed -n 2,6p "$0"; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
dir=$(cd "$1" && pwd)
(cd "$here/../.." && go build -o "$dir/sitrep" . &&
	for p in internal/track/scan failover/recovered failover/home; do go test -c -o "$dir/${p##*/}.test" ./$p || exit 1; done)
[ -f "$dir/manifest.txt" ] || "$here/mkimages.sh" -d "$data" -f vhdx "$size" "$dir"
cd "$dir"
export SITREP_SITE=$dir/site.yaml
mkdir -p disks
cat >site.yaml <<'Y'
vault: bench
store: {directory: ./dr}
policies: [{name: p, copy_frequency: 5m}]
vmm:
  server: vmm
  clouds:
    - name: c
      policy: p
      hosts:
        - name: h
          hypervisor: none
          vms:
            - {name: raw, generation: 2, os: linux, cpus: 1, memory: 1GiB, disks: [{name: os, path: disks/raw.raw}]}
            - {name: vhdx, generation: 2, os: linux, cpus: 1, memory: 1GiB, disks: [{name: os, path: disks/vhdx.vhdx}]}
Y
cp --sparse=always --reflink=never day1.raw disks/raw.raw
cp --sparse=always --reflink=never day1.vhdx disks/vhdx.vhdx

warm() { cat "$@" >/dev/null; }
chill() { sync; echo 3 >/proc/sys/vm/drop_caches; }
# patch DAY FILE: makes a raw file what the disk was on that day, by writing the blocks that differ between the days.
patch() {
	python3 - "$1" "$2" <<'P'
import os, sys
src, dst = os.open(f'day{sys.argv[1]}.raw', os.O_RDONLY), os.open(sys.argv[2], os.O_WRONLY)
for line in open('changed-64k.txt'):
    off = int(line) * 65536
    os.pwrite(dst, os.pread(src, 65536, off), off)
os.fsync(dst)
P
}
forget() { rm -rf dr .sitrep; }

declare -A times
# timed NAME COMMAND...: runs a command and keeps its wall time.
timed() {
	local name=$1 t0 t1
	shift
	t0=$(date +%s%N)
	"$@" >>log.txt 2>&1 || { echo "failed: $*"; tail -5 log.txt; exit 1; }
	t1=$(date +%s%N)
	times[$name]+="$(((t1 - t0) / 1000)) "
}
median() { tr ' ' '\n' <<<"${times[$1]}" | grep . | sort -n | awk '{v[NR]=$1} END{printf "%d", NR%2 ? v[(NR+1)/2] : (v[NR/2]+v[NR/2+1])/2}'; }
show() { # show NAME BASE: a row with the ratio to the base
	awk -v n="$1" -v a="$(median "$1")" -v b="$(median "$2")" -v base="$2" \
		'BEGIN{printf "  %-44s %8.3f s   %5.2f x %s\n", n, a/1e6, a/b, base}'
}

copies() { # copies FORMAT PREPARE...: the initial copy of a disk, against the peers
	local f=$1 src=disks/$1.$1 r best
	shift
	times=()
	for ((r = 0; r < rounds; r++)); do
		forget; "$@" $src; timed "sitrep protect" sh -c "./sitrep --progress none protect $f && sync dr/$f/os.vhd"
		rm -f t; "$@" $src; timed "qemu-img convert -W -m 8 -t none" sh -c "qemu-img convert -W -m 8 -t none -f $f -O raw $src t && sync t"
		rm -f t; "$@" $src; timed "qemu-img convert" sh -c "qemu-img convert -f $f -O raw $src t && sync t"
		if [ "$f" = raw ]; then
			rm -f t; "$@" $src; timed "cp --sparse=always" sh -c "cp --reflink=never --sparse=always $src t && sync t"
		fi
	done
	rm -f t
	best=$(for n in "${!times[@]}"; do [ "$n" = "sitrep protect" ] || echo "$(median "$n") $n"; done | sort -n | head -1 | cut -d' ' -f2-)
	for n in "${!times[@]}"; do show "$n" "$best"; done | sort
}

deltas() { # deltas PREPARE...: 2 % of the 64 KiB blocks changed; and an untouched disk
	local r day=2
	times=()
	forget
	patch 1 disks/raw.raw
	./sitrep --progress none protect raw >>log.txt
	for ((r = 0; r < rounds; r++)); do
		patch $day disks/raw.raw; day=$((3 - day)); "$@" disks/raw.raw
		timed "scan (delta --dry-run)" ./sitrep --progress none --dry-run delta raw
		"$@" disks/raw.raw
		timed "sitrep delta" sh -c './sitrep --progress none delta raw && sync dr/raw/os.vhd'
		sleep 0.2
		./sitrep delta raw >>log.txt
		timed "sitrep delta, untouched" ./sitrep --progress none delta raw
	done
	for n in "sitrep delta" "scan (delta --dry-run)" "sitrep delta, untouched"; do show "$n" "scan (delta --dry-run)"; done
}

resyncs() { # resyncs PREPARE...: 2 % of the 64 KiB blocks differ
	local r day=2
	times=()
	forget
	patch 1 disks/raw.raw
	./sitrep --progress none protect raw >>log.txt
	cp --sparse=always --reflink=never day1.raw t
	for ((r = 0; r < rounds; r++)); do
		for how in "" "--deep"; do
			patch $day disks/raw.raw; day=$((3 - day)); rm -rf .sitrep; "$@" disks/raw.raw dr/raw/os.vhd
			timed "sitrep resync $how" sh -c "./sitrep --progress none resync $how raw && sync dr/raw/os.vhd"
		done
		patch $((r % 2 + 1)) t; "$@" disks/raw.raw t
		patch $((2 - r % 2)) disks/raw.raw; "$@" disks/raw.raw t
		timed "rsync --inplace --no-whole-file -B 65536" sh -c 'rsync -I --inplace --no-whole-file -B 65536 disks/raw.raw t && sync t'
		patch $((3 - day)) disks/raw.raw
	done
	rm -f t
	for n in "${!times[@]}"; do show "$n" "rsync --inplace --no-whole-file -B 65536"; done | sort
}

scans() { # the reader alone, against two threads of plain 1 MiB pread (Floor) on the same file
	./scan.test -test.run xxx -test.bench '(Scan|Floor)(Warm|Cold)' -test.benchtime "${rounds}x" | grep -E '^Bench' | sed 's/^/  /'
}

benchmarks() { # benchmarks NAME: keeps the times of the Go benchmarks of a package, which run their peers in turn; one run a round
	local r name ns
	times=()
	mkdir -p tmp
	for ((r = 0; r < rounds; r++)); do
		TMPDIR=$dir/tmp "./$1.test" -test.run xxx -test.bench . -test.benchtime 1x >bench.txt 2>&1 || { cat bench.txt; exit 1; }
		while read -r name ns; do
			times[${name%-"$(nproc)"}]+="$((ns / 1000)) "
		done < <(sed -nE 's|^Benchmark[^/]*/([^[:space:]]+)[[:space:]]+1[[:space:]]+([0-9]+) ns/op.*|\1 \2|p' bench.txt)
	done
	rm -rf tmp
}

recovereds() { # a recovered disk, 512 MiB with 256 MiB of data, from an image that is read warm
	local f
	benchmarks recovered
	for f in raw vhd vhddynamic vhdx vhdxfixed qcow2; do
		show "sitrep/$f" "qemu-img/$f"
		show "qemu-img/$f" "qemu-img/$f"
	done
}

homes() { # bringing 1 GiB home of which 1.6 % differs: everything read on both sides; sums kept of it; with those sums
	local n
	benchmarks home
	[ -n "${times[rsync]-}" ] || { echo "rsync did not run"; exit 1; }
	for n in sitrep sitrep_keeping_sums sitrep_second rsync qemu-img_compare; do show "$n" rsync; done
}

: >log.txt
echo "machine: $(nproc) cores, $(uname -sr); disk of $size GiB with $data MiB of files; medians of $rounds rounds"
for state in warm ${cold:+cold}; do
	prepare=warm; [ $state = cold ] && prepare=chill
	echo "initial copy, vhdx, $state"; copies vhdx $prepare
	echo "initial copy, raw, $state"; copies raw $prepare
	echo "delta, 2 % of the 64 KiB blocks changed, $state"; deltas $prepare
	echo "resync, 2 % of the 64 KiB blocks differ, $state"; resyncs $prepare
done
echo "scan"; scans
echo "a recovered disk is made, against qemu-img convert -t none -W"; recovereds
echo "a disk is brought home, against rsync --inplace --no-whole-file"; homes
