# SPDX-License-Identifier: Apache-2.0
"""How functions of vfio-pci and mediated devices answer reads and writes, for docs/vfio.md.

State: none. Source: the behaviour of vfio-pci (devmodel.vfio.pciaccess and devmodel.vfio.vconfig).
"""

ONES = "all ones; writes are dropped"
OWN = "the client's own"
MODEL = "the model's registers"
ACCESSES = (
    ("a memory BAR that the command register does not decode", "EIO", ONES),
    ("an I/O BAR that the command register does not decode", ONES, ONES),
    ("BARs in D3hot", "memory is EIO, I/O is all ones", ONES),
    ("the ROM", "EIO without memory decoding and in D3hot; its enable bit does not matter", "always there"),
    ("the MSI-X table", ONES, "what the model has"),
    ("BARs, ROM address, interrupt line", f"{OWN}; the hardware keeps its addresses", MODEL),
    (
        "MSI: enable",
        "says what is on; can be switched off and on meanwhile",
        "says what is on; can be written",
    ),
    ("MSI: address and data", OWN, MODEL),
    ("MSI-X: control", "says what is on; read-only", "says what is on; can be written"),
    ("power state", "D0 and D3hot, no others; the next open finds D0", "D0 and D3hot, no others"),
    ("power management events", "hidden: their bits read 0, and cannot be written", MODEL),
    ("device control: reset bit", "resets the function, and reads 0", "the same"),
    ("device control: sizes of payloads and reads", OWN, MODEL),
    ("link control", "read-only", MODEL),
)
"""What is read or written, the answer of a function that vfio-pci drives, that of a mediated device."""
NOTE = """
Configuration space of a mediated device, and `config` of a function in sysfs, are the registers of the model.
Pages that a client has mapped stay mapped and readable when decoding is switched off, in D3hot, and over a
reset, because a mapping through FUSE cannot be taken back. On Linux an access is SIGBUS.
"""
