#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# vfsfuse run --udev -- examples/libvirt/run.sh CMD ARG...
#
# Runs CMD beside a libvirtd of its own, which knows the devices of the lab and none of the machine's domains.
# virsh and other clients find it without an option. It ends with CMD, and so do its domains. Root only.
set -eu

# With a PID namespace, all that libvirtd has started ends with this script.
[ $$ -eq 1 ] || exec unshare --pid --fork --kill-child --mount-proc "$0" "$@"

# These mounts are seen in this run only. The machine's libvirtd, if there is one, keeps its files.
for folder in /etc/libvirt /run/libvirt /var/cache/libvirt /var/lib/libvirt /var/log/libvirt; do
    mkdir -p "$folder"
    mount -t tmpfs -o mode=755 libvirt "$folder"
done
cat >/etc/libvirt/qemu.conf <<END
stdio_handler = "file"
cgroup_controllers = []
security_driver = "none"
END

# libvirt 10 and later look there for a driver of VFIO that is made for a function. A container has no modules
# of the kernel that it runs on; without a file there, libvirt takes no function from its driver.
modules=/lib/modules/$(uname -r)
if [ ! -e "$modules/modules.alias" ]; then
    mkdir -p /lib/modules
    mount -t tmpfs -o mode=755 libvirt /lib/modules
    mkdir "$modules"
    echo '# no aliases' >"$modules/modules.alias"
fi

libvirtd --pid-file /run/libvirt/pid 2>/var/log/libvirt/libvirtd.log &
until [ -S /run/libvirt/libvirt-sock ]; do
    kill -0 $! 2>/dev/null || { cat /var/log/libvirt/libvirtd.log >&2; exit 1; }
    sleep 0.05
done
status=0
"$@" || status=$?
exit $status
