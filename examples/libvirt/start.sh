#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
virsh nodedev-create examples/libvirt/vgpu.xml
virsh create examples/libvirt/domain.xml
virsh -q domstate guest
virsh qemu-monitor-command guest --hmp info pci | grep 1234:1111
virsh destroy guest
