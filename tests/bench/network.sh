#!/bin/bash
# The network between a container and its host's side: hull with its bridge and tc models, each with vhost-net and
# without, runc, and QEMU's microvm and q35 with vhost-net on a tap that is wired as hull's bridge model has it. All
# machines have one vCPU, 512 MiB and the same kernel, and cannot grow: one that may have a second vCPU has the kernel's
# locks for several. Measures all in turn, so many times, prints each figure, then a table of the medians' ratios to
# QEMU's q35.
# Usage: network.sh [SECONDS FOR EACH FIGURE [ROUNDS [CONTENDER...]]]. Needs a KVM that runs Linux, vhost_net, runc,
# qemu-system-x86_64, busybox-static, jq; ../../xtask/src/task_bench.rs makes the rest.
set -eu

seconds=${1:-3}
rounds=${2:-3}
shift $(($# < 2 ? $# : 2))
contenders=${*:-runc q35 microvm hull-bridge-vhost hull-bridge hull-tc-vhost hull-tc}
prefix=$(dirname "$(dirname "$(readlink -f "$(command -v hull)")")")
traffic=$prefix/bench/traffic
kernel=$prefix/bench/vmlinux
host=10.66.0.1
container=10.66.0.2
netns=bench-network
# QEMU has one as containers do: threads that share a cgroup share its part of the CPUs.
cgroup=/sys/fs/cgroup/bench-qemu
work=$(mktemp -d)
touch "$work/console"
server=

# Ends what the contender started, and its namespace with all that is in it.
clear_away() {
    case $server in
        hull) hull --root "$work/hull" delete --force bench || true ;;
        runc) runc --root "$work/runc" delete --force bench || true ;;
        '') ;;
        *)
            kill "$server" 2>/dev/null && wait "$server" || true
            rmdir "$cgroup"
            ;;
    esac
    server=
    ip netns delete $netns 2>/dev/null || true
    while ip link show bench-host >/dev/null 2>&1; do sleep 0.1; done
}
trap 'clear_away; rm -rf "$work"' EXIT

make_netns() {
    ip netns add $netns
    ip link add bench-host type veth peer name eth0 netns $netns
    ip address add $host/24 dev bench-host
    ip link set bench-host up
    ip -n $netns address add $container/24 dev eth0
    ip -n $netns link set eth0 up
    ip -n $netns link set lo up
}

make_bundle() {
    mkdir -p "$work/bundle/rootfs"
    cp "$traffic" "$work/bundle/rootfs/traffic"
    (cd "$work/bundle" && rm -f config.json && runc spec)
    # The capability with which QEMU's program, its guest's first, sets the size of its receive buffer.
    jq ".process.terminal = false | .process.args = [\"/traffic\", \"serve\"] | .annotations = $1 |
        .process.capabilities |= map_values(. + [\"CAP_NET_ADMIN\"]) |
        (.linux.namespaces[] | select(.type == \"network\")).path = \"/run/netns/$netns\"" \
        "$work/bundle/config.json" >"$work/bundle/config" && mv "$work/bundle/config" "$work/bundle/config.json"
}

start_runc() {
    make_bundle '{}'
    server=runc
    runc --root "$work/runc" run --detach --bundle "$work/bundle" bench </dev/null >"$work/log" 2>&1
}

start_hull() {
    make_bundle "{\"dev.hull.network.model\": \"$1\", \"dev.hull.network.vhost\": \"$2\", \"dev.hull.vcpus\": \"1\",
        \"dev.hull.memory_mib\": \"512\"}"
    printf '[paths]\nkernel = "%s"\n[sandbox]\nmax_vcpus = 1\n' "$kernel" >"$work/hull.toml"
    server=hull
    hull --config "$work/hull.toml" --root "$work/hull" run --detach --bundle "$work/bundle" bench </dev/null >"$work/log" 2>&1
}

# A guest whose only programs are busybox and the traffic's.
make_initramfs() {
    mkdir -p "$work/guest/dev" "$work/guest/proc"
    cp "$(command -v busybox)" "$traffic" "$work/guest/"
    mknod "$work/guest/dev/console" c 5 1
    cat >"$work/guest/init" <<INIT
#!/busybox sh
/busybox mount -t proc proc /proc
/busybox ip address add $container/24 dev eth0
/busybox ip link set lo up
/busybox ip link set eth0 up
exec /traffic serve
INIT
    chmod 755 "$work/guest/init"
    (cd "$work/guest" && find . | busybox cpio -o -H newc 2>/dev/null) >"$work/initramfs"
}

start_qemu() {
    local mac
    [ -e "$work/initramfs" ] || make_initramfs
    mac=$(ip netns exec $netns cat /sys/class/net/eth0/address)
    ip -n $netns address flush dev eth0
    ip -n $netns tuntap add tap0 mode tap vnet_hdr
    ip -n $netns link add br0 type bridge mcast_snooping 0
    ip -n $netns link set eth0 down
    ip -n $netns link set eth0 address 02:00:ca:fe:00:00 master br0
    ip -n $netns link set tap0 master br0
    for name in eth0 tap0 br0; do ip -n $netns link set $name up; done
    mkdir "$cgroup"
    (
        echo 0 >"$cgroup/cgroup.procs"
        exec ip netns exec $netns qemu-system-x86_64 -M "$1" -accel kvm -cpu host -m 512 -smp 1 -nodefaults \
            -no-user-config -display none -no-reboot -serial "file:$work/console" -kernel "$kernel" \
            -initrd "$work/initramfs" -append "quiet console=ttyS0 tsc=reliable no_timer_check rcupdate.rcu_expedited=1" \
            -netdev tap,id=net,ifname=tap0,script=no,downscript=no,vhost=on -device "$2,netdev=net,mac=$mac"
    ) </dev/null >"$work/log" 2>&1 &
    server=$!
}

start() {
    case $1 in
        runc) start_runc ;;
        q35) start_qemu q35 virtio-net-pci ;;
        microvm) start_qemu microvm,acpi=off,x-option-roms=off,isa-serial=on,rtc=off,pit=off,pic=off virtio-net-device ;;
        hull-bridge-vhost) start_hull bridge auto ;;
        hull-bridge) start_hull bridge off ;;
        hull-tc-vhost) start_hull tc auto ;;
        hull-tc) start_hull tc off ;;
        *) echo "no contender $1" >&2 && exit 2 ;;
    esac
}

modprobe vhost_net
for _ in $(seq "$rounds"); do
    for contender in $contenders; do
        echo "== $contender" >&2
        make_netns
        # What the host remembers of the last one's connections.
        ip tcp_metrics flush
        start "$contender"
        attempts=0
        until "$traffic" measure $container 0 >/dev/null 2>&1; do
            attempts=$((attempts + 1))
            [ $attempts -lt 100 ] || { cat "$work/log" "$work/console" >&2; exit 1; }
            sleep 0.3
        done
        "$traffic" measure $container "$seconds" | tee -a "$work/$contender.figures" >&2
        clear_away
    done
done

# CONTENDER FIGURE PERCENT: of the figure's values, the one that so many of them are not above; nothing if there is none.
quantile() {
    [ -e "$work/$1.figures" ] || return 0
    sed -n "s/^$2 //p" "$work/$1.figures" | sort -n | awk -v percent="$3" '{ values[NR] = $1 }
        END { if (NR) print values[1 + int((NR - 1) * percent / 100)] }'
}

# A row for each figure, "-" for one that a machine did not live to. Of rates more is better, of times less: both are
# turned so that above 1 is better than q35. Of what went wrong, the most of all rounds.
printf '%-24s' 'ratio to q35'
for contender in $contenders; do printf '%18s' "$contender"; done
echo
cut -d' ' -f1 "$work/${contenders%% *}.figures" | awk '!seen[$0]++' | while read -r name; do
    printf '%-24s' "$name"
    for contender in $contenders; do
        case $name in
            *_resent | *_reordered | *_lost)
                value=$(quantile "$contender" "$name" 100)
                printf '%18s' "${value:--}"
                continue
                ;;
        esac
        value=$(quantile "$contender" "$name" 50)
        peer=$(quantile q35 "$name" 50)
        awk -v name="$name" -v value="${value:-0}" -v peer="${peer:-0}" 'BEGIN {
            if (name ~ /_us$/) { swap = value; value = peer; peer = swap }
            if (value > 0 && peer > 0) printf "%18.2f", value / peer; else printf "%18s", "-" }'
    done
    echo
done
