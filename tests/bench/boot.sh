#!/bin/bash
# From the start of the VMM to its end, for a guest whose init ends the machine at once: hull-vmm against QEMU microvm,
# with the same kernel, initramfs, memory and vCPU, in turn in one run. Prints each pair, the medians and their ratio.
# Usage: boot.sh [PAIRS]. Needs a KVM that runs Linux, qemu-system-x86_64, busybox-static and cpio or busybox.
set -eu

pairs=${1:-9}
prefix=$(dirname "$(dirname "$(readlink -f "$(command -v hull)")")")
kernel=$prefix/share/hull/vmlinux
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir -p "$work/root/dev"
cp "$(command -v busybox)" "$work/root/busybox"
mknod "$work/root/dev/console" c 5 1
printf '#!/busybox sh\nexec /busybox reboot -f\n' >"$work/root/init"
chmod 755 "$work/root/init"
(cd "$work/root" && find . | busybox cpio -o -H newc 2>/dev/null) >"$work/initramfs"

now() { date +%s%N; }

hull_vmm() {
    rm -rf "$work/run" && mkdir "$work/run"
    cat >"$work/vm.json" <<JSON
{ "vcpus": 1, "max_vcpus": 1, "memory_mib": 512, "max_memory_mib": 512, "kernel": "$kernel", "initramfs": "$work/initramfs",
  "vsock": { "cid": 3, "socket": "$work/run/vsock" }, "console_log": "$work/run/console",
  "control_socket": "$work/run/control", "outcome": "$work/run/outcome", "jail": false }
JSON
    "$prefix/libexec/hull/hull-vmm" --config "$work/vm.json" >"$work/hull.log" 2>&1 || {
        cat "$work/hull.log" "$work/run/outcome" >&2
        exit 1
    }
    grep -q guest_reset "$work/run/outcome"
}

microvm() {
    qemu-system-x86_64 -M microvm,acpi=off,x-option-roms=off,isa-serial=on,rtc=off,pit=off,pic=off -accel kvm -cpu host -m 512 -smp 1 \
        -nodefaults -no-user-config -display none -no-reboot -serial none -kernel "$kernel" -initrd "$work/initramfs" \
        -append "quiet reboot=t panic=-1 tsc=reliable no_timer_check rcupdate.rcu_expedited=1" >"$work/qemu.log" 2>&1 || {
        cat "$work/qemu.log" >&2
        exit 1
    }
}

time_ms() {
    local begin
    begin=$(now)
    "$1"
    echo $((($(now) - begin) / 1000000))
}

time_ms hull_vmm >/dev/null
time_ms microvm >/dev/null
for _ in $(seq "$pairs"); do
    a=$(time_ms hull_vmm)
    b=$(time_ms microvm)
    echo "hull-vmm $a ms, QEMU microvm $b ms"
    echo "$a $b" >>"$work/figures"
done
median() { cut -d' ' -f"$1" "$work/figures" | sort -n | sed -n "$(((pairs + 1) / 2))p"; }
a=$(median 1)
b=$(median 2)
echo "median: hull-vmm $a ms, QEMU microvm $b ms, ratio $(awk "BEGIN { printf \"%.2f\", $a / $b }")"
