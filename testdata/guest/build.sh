#!/usr/bin/env bash
# Makes a small Linux guest out of Debian's own packages, which are downloaded and not installed:
#   OUTDIR/vmlinuz, OUTDIR/initrd.gz   kernel and initial filesystem (see init, beside this script)
#   OUTDIR/boot.raw                    the first 21 MiB of a disk that boots by itself: partition table, boot sector, FAT with
#                                      syslinux (BIOS), startup.nsh (UEFI), kernel and initrd. At 21 MiB, its second partition, an ext4 of 32 MiB goes.
#   OUTDIR/disk.raw                    such a disk, with the files of OUTDIR/seed when there are any
# What exists already is not made again. Needs: apt-get with Debian 12's packages, syslinux, mtools, dosfstools, fdisk, cpio,
# e2fsprogs. No root, no mount, nothing installed.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C
[ $# = 1 ] || { echo "usage: build.sh OUTDIR" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
work=$(mktemp -d "$out/.work-XXXXXX")
trap 'rm -rf "$work"' EXIT

# download NAME: the package's files, unpacked below $work/x. Lists that are out of date are brought up to date first.
download() {
	(cd "$work" && { apt-get download "$1" >apt.log 2>&1 || { apt-get update -qq && apt-get download "$1"; } >>apt.log 2>&1 || { cat apt.log >&2; exit 1; }; })
	dpkg-deb -x "$work/${1}"_*.deb "$work/x"
	rm -f "$work/${1}"_*.deb
}

if [ ! -s "$out/boot.raw" ]; then
	kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n1)
	if [ -z "$kernel" ]; then
		apt-get update -qq
		kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n1)
	fi
	download "$kernel"
	download busybox-static

	# The kernel has NVMe, ext4 and the serial console built in; of modules only the power button's are needed.
	ir=$work/initrd
	mkdir -p "$ir"/{bin,proc,sys,dev,mnt,data,modules}
	cp "$work/x/bin/busybox" "$ir/bin/"
	cp "$work"/x/lib/modules/*/kernel/drivers/acpi/button.ko "$work"/x/lib/modules/*/kernel/drivers/input/evdev.ko "$ir/modules/"
	install -m 0755 "$here/init" "$ir/init"
	(cd "$ir" && find . | LC_ALL=C sort | cpio -o -H newc --quiet | gzip -9n) >"$work/initrd.gz"
	cp "$work"/x/boot/vmlinuz-* "$work/vmlinuz.efi" # it is a UEFI program too

	fat=$work/fat.img
	truncate -s 20M "$fat"
	mkfs.vfat -F 16 -n BOOT "$fat" >/dev/null
	printf 'SERIAL 0 115200\nDEFAULT l\nPROMPT 0\nTIMEOUT 1\nLABEL l\n KERNEL vmlinuz.efi\n INITRD initrd.gz\n APPEND console=ttyS0 quiet panic=-1\n' >"$work/syslinux.cfg"
	printf 'vmlinuz.efi initrd=\\initrd.gz console=ttyS0 quiet panic=-1\r\n' >"$work/startup.nsh" # what a UEFI shell runs
	MTOOLS_SKIP_CHECK=1 mcopy -i "$fat" "$work/vmlinuz.efi" "$work/initrd.gz" "$work/syslinux.cfg" "$work/startup.nsh" ::
	syslinux --install "$fat"

	truncate -s 53M "$work/boot.raw"
	printf 'label: dos\nlabel-id: 0x51742e70\nstart=2048, size=40960, type=c, bootable\nstart=43008, size=65536, type=83\n' | sfdisk -q "$work/boot.raw"
	dd if=/usr/lib/syslinux/mbr/mbr.bin of="$work/boot.raw" bs=440 count=1 conv=notrunc status=none
	dd if="$fat" of="$work/boot.raw" bs=1M seek=1 conv=notrunc,sparse status=none
	truncate -s 21M "$work/boot.raw"
	mv "$work/vmlinuz.efi" "$out/vmlinuz"
	mv "$work/initrd.gz" "$out/"
	mv "$work/boot.raw" "$out/boot.raw" # last: it says that everything is there
fi

if [ ! -s "$out/disk.raw" ]; then
	mkdir -p "$out/seed"
	cp --sparse=always "$out/boot.raw" "$work/disk.raw"
	truncate -s 32M "$work/root.img"
	mke2fs -q -t ext4 -F -d "$out/seed" "$work/root.img"
	dd if="$work/root.img" of="$work/disk.raw" bs=1M seek=21 conv=notrunc,sparse status=none
	truncate -s 53M "$work/disk.raw"
	mv "$work/disk.raw" "$out/disk.raw"
fi
