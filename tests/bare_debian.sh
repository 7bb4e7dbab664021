#!/bin/sh
# Runs the README's two commands, twice each, in a bare Debian 12 that holds nothing but Python and make.
#
#   tests/bare_debian.sh                     make demo and make test, twice each, of what is committed
#   tests/bare_debian.sh 'make demo' …       these commands instead, in turn
#
# Needs root, debootstrap and the network; takes about 2 GB in $TMPDIR, which are given back. The tree has its
# own process and mount namespace, so whatever is left running or mounted at the end goes with it, and is shown.
set -eu

if [ "${1:-}" != --inside ]; then
	[ "$(id -u)" = 0 ] || { echo 'bare_debian.sh: making a tree to chroot into needs root' >&2; exit 1; }
	[ $# -gt 0 ] || set -- 'make demo' 'make demo' 'make test' 'make test'
	checkout=$(cd "$(dirname "$0")/.." && pwd)
	tree=$(mktemp -d)
	trap 'rm -rf --one-file-system "$tree"' EXIT
	trap 'exit 130' INT TERM
	debootstrap --variant=minbase --include=python3,make,ca-certificates bookworm "$tree" >"$tree/debootstrap.log" ||
		{ tail -n 20 "$tree/debootstrap.log" >&2; exit 1; }
	git clone --quiet "file://$checkout" "$tree/root/a checkout"
	# As every machine has it, and no more: its own name can't be looked up.
	echo '127.0.0.1 localhost' >"$tree/etc/hosts"
	# What this machine needs to reach its package indexes, the tree needs too.
	cat /etc/resolv.conf >"$tree/etc/resolv.conf"
	if [ -e /etc/ssl/certs/ca-certificates.crt ]; then
		cat /etc/ssl/certs/ca-certificates.crt >"$tree/etc/ssl/certs/ca-certificates.crt"
	fi
	unshare --mount --pid --fork --kill-child "$0" --inside "$tree" "$@"
	exit
fi

tree=$2
shift 2
# A chroot that is no mount point has none to unshare, as making the MySQL server does.
mount --bind "$tree" "$tree"
mount -t proc proc "$tree/proc"
mount -t tmpfs tmpfs "$tree/dev"
for device in null zero full random urandom tty; do
	touch "$tree/dev/$device"
	mount --bind "/dev/$device" "$tree/dev/$device"
done
ln -s /proc/self/fd "$tree/dev/fd"
# Terminals, of which it has none by itself.
mkdir "$tree/dev/pts"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$tree/dev/pts"
ln -s pts/ptmx "$tree/dev/ptmx"

for command; do
	echo "== $command"
	# No locale, no /dev/shm, and of the environment only the way to the package indexes.
	env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin \
		${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} \
		${PIP_INDEX_URL:+PIP_INDEX_URL="$PIP_INDEX_URL"} ${PIP_CERT:+PIP_CERT="$PIP_CERT"} \
		chroot "$tree" sh -c "cd '/root/a checkout' && $command" </dev/null
	if grep -lxE 'nginx|uwsgi|mariadbd|mysqld' "$tree"/proc/[0-9]*/comm; then
		echo 'bare_debian.sh: these servers are left running' >&2
		exit 1
	fi
done
