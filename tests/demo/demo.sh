#!/bin/sh
# The main job, shown: a busybox container in its own VM, behind a bridge and a veth, started by `hull run`.
# Runs as root on a machine with hull in its PATH, a KVM that runs Linux, iproute2, jq and a static busybox; puts back
# what it changes.
set -eu

bridge=hulldemo0
netns=hulldemo
work=$(mktemp -d)
state=$work/state

clean_up() {
    hull --root "$state" delete --force demo 2>/dev/null || true
    ip netns delete "$netns" 2>/dev/null || true
    ip link delete "$bridge" 2>/dev/null || true
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

say() { printf '\n== %s\n' "$*"; }

say "a bundle: busybox, and what \`hull spec\` writes"
mkdir -p "$work/bundle/rootfs/bin" "$work/bundle/rootfs/proc" "$work/bundle/rootfs/sys" "$work/bundle/rootfs/dev"
cp "$(command -v busybox)" "$work/bundle/rootfs/bin/busybox"
for applet in sh uname ip ping cat sleep; do ln -s busybox "$work/bundle/rootfs/bin/$applet"; done
hull spec --bundle "$work/bundle"
script='echo "guest kernel: $(uname -r)"
echo "addresses inside:"; ip addr show dev eth0
echo "the container pings the host:"; ping -c 3 -W 20 10.88.77.1 || exit 1
echo "waiting to be pinged"; exec sleep 1000'
jq --arg netns "/run/netns/$netns" --arg script "$script" \
    '.process.terminal = false | .process.args = ["/bin/sh", "-c", $script] |
     .process.capabilities[] |= (. + ["CAP_NET_RAW"] | unique) |
     (.linux.namespaces[] | select(.type == "network")).path = $netns' \
    "$work/bundle/config.json" >"$work/config.json"
mv "$work/config.json" "$work/bundle/config.json"
echo "$work/bundle"

say "a network: bridge $bridge 10.88.77.1/24, and a veth into the network namespace $netns"
ip link add "$bridge" type bridge
ip addr add 10.88.77.1/24 dev "$bridge"
ip link set "$bridge" up
ip netns add "$netns"
ip -n "$netns" link set lo up
ip link add hulldemo1 type veth peer name eth0 netns "$netns"
ip link set hulldemo1 master "$bridge" up
ip -n "$netns" addr add 10.88.77.2/24 dev eth0
ip -n "$netns" link set eth0 up
ip -n "$netns" route add default via 10.88.77.1

say "hull run"
echo "host kernel:  $(uname -r)"
mkfifo "$work/output"
begin=$(date +%s%N)
hull --root "$state" --debug --log "$work/log" --log-format json run --bundle "$work/bundle" demo \
    >"$work/output" 2>"$work/error" </dev/null &
run=$!
exec 3<"$work/output"
if ! IFS= read -r line <&3; then
    cat "$work/error" >&2
    exit 1
fi
first=$(date +%s%N)
while :; do
    echo "$line"
    [ "$line" != "waiting to be pinged" ] || break
    IFS= read -r line <&3 || { cat "$work/error" >&2; exit 1; }
done

say "the host pings the container"
ping -c 3 -W 20 10.88.77.2

say "from create to the container's first output: $(((first - begin) / 1000000)) ms, of which"
jq -r 'select(.phase != null) | "\(.phase)\t\(.elapsed_us)\t\(.total_us)"' "$work/log" |
    awk -F '\t' '{ printf "  %-28s %8.1f ms, up to %8.1f ms\n", $1, $2 / 1000, $3 / 1000 }'

hull --root "$state" kill demo KILL
wait "$run" || true
say "done: the container is gone, and its network is put back"
ip -n "$netns" -br link
