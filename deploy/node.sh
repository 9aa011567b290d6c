#!/bin/sh
# Puts hull on a node, or takes it off again.
#
#   node.sh install ROOT   copies hull below ROOT, the node's root directory, and names it to containerd and CRI-O
#   node.sh remove ROOT    undoes that
#   node.sh serve ROOT     installs it, and removes it when it is told to end
#
# HULL_PREFIX: where hull is copied from; build/ of the checkout if it is not set.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
prefix=${HULL_PREFIX:-$here/../build}
files='bin/hull bin/containerd-shim-hull-v2 libexec/hull/hull-vmm share/hull/vmlinux share/hull/initramfs.cpio'
begin='# hull: begin (node.sh removes what is between these lines)'
end='# hull: end'

fail() {
    echo "node.sh: $*" >&2
    exit 1
}

# Prints a configuration without hull's part.
without_hull() {
    sed "/^$begin\$/,/^$end\$/d" "$1"
}

# Replaces a file by standard input in one step.
replace() {
    cat >"$1.hull-new"
    mv "$1.hull-new" "$1"
}

name_to_containerd() {
    config=$root/etc/containerd/config.toml
    mkdir -p "${config%/*}"
    [ -e "$config" ] || echo 'version = 2' >"$config"
    case $(sed -n 's/^version *= *//p' "$config") in
    2) snippet=$here/containerd.toml ;;
    3) snippet=$here/containerd-2.toml ;;
    *) fail "$config: version 2 or 3 is expected" ;;
    esac
    {
        without_hull "$config"
        echo "$begin"
        # Where a table of runtimes is written, containerd's own default is no longer there.
        if ! without_hull "$config" | grep -q 'runtimes\.runc\]'; then
            sed -n '1s/hull\]/runc]/p' "$snippet"
            echo 'runtime_type = "io.containerd.runc.v2"'
        fi
        cat "$snippet"
        echo "$end"
    } | replace "$config"
}

# Restarts a service of the node's, if systemd runs it there.
restart() {
    if [ -d "$root/run/systemd/system" ] && chroot "$root" systemctl --quiet is-active "$1"; then
        chroot "$root" systemctl restart "$1"
    fi
}

install() {
    [ -c "$root/dev/kvm" ] || fail "the node has no /dev/kvm"
    for file in $files; do
        mkdir -p "$root/usr/local/${file%/*}"
        # A program that runs keeps its file.
        cp -p "$prefix/$file" "$root/usr/local/$file.hull-new"
        mv "$root/usr/local/$file.hull-new" "$root/usr/local/$file"
    done
    name_to_containerd
    restart containerd
    if [ -d "$root/etc/crio" ]; then
        mkdir -p "$root/etc/crio/crio.conf.d"
        cp "$here/crio.conf" "$root/etc/crio/crio.conf.d/50-hull.conf"
        restart crio
    fi
}

remove() {
    config=$root/etc/containerd/config.toml
    if [ -e "$config" ]; then
        without_hull "$config" | replace "$config"
        restart containerd
    fi
    if [ -e "$root/etc/crio/crio.conf.d/50-hull.conf" ]; then
        rm "$root/etc/crio/crio.conf.d/50-hull.conf"
        restart crio
    fi
    for file in $files; do
        rm -f "$root/usr/local/$file"
    done
    for directory in libexec/hull share/hull; do
        [ ! -d "$root/usr/local/$directory" ] || rmdir "$root/usr/local/$directory"
    done
}

[ $# = 2 ] || fail 'usage: node.sh install|remove|serve ROOT'
root=${2%/}
case $1 in
install) install ;;
remove) remove ;;
serve)
    trap 'remove; exit 0' TERM INT
    install
    while :; do
        sleep 3600 &
        wait $!
    done
    ;;
*) fail "unknown command $1" ;;
esac
