# SPDX-License-Identifier: Apache-2.0
"""The bits of a 16550's registers, with the names of <linux/serial_reg.h> without their UART_.

State: none. These are plain numbers, which are faster than enumerations: every access of a guest uses them.
"""

FIFO_SIZE = 16

IER_RDI, IER_THRI, IER_RLSI, IER_MSI = 0x01, 0x02, 0x04, 0x08
IER_MASK = IER_RDI | IER_THRI | IER_RLSI | IER_MSI

IIR_NO_INT = 0x01
IIR_RLSI, IIR_RDI, IIR_RX_TIMEOUT, IIR_THRI, IIR_MSI = 0x06, 0x04, 0x0C, 0x02, 0x00
IIR_FIFO_ENABLED = 0xC0

FCR_ENABLE_FIFO, FCR_CLEAR_RCVR, FCR_CLEAR_XMIT, FCR_TRIGGER_MASK = 0x01, 0x02, 0x04, 0xC0
FCR_TRIGGERS = {0x00: 1, 0x40: 4, 0x80: 8, 0xC0: 14}
"""The number of bytes in the FIFO at which the receiver interrupts, by the bits of FCR_TRIGGER_MASK."""

LCR_SBC, LCR_DLAB = 0x40, 0x80

MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 0x01, 0x02, 0x04, 0x08, 0x10
MCR_MASK = 0x1F

LSR_DR, LSR_OE, LSR_PE, LSR_FE, LSR_BI = 0x01, 0x02, 0x04, 0x08, 0x10
LSR_THRE, LSR_TEMT, LSR_FIFOE = 0x20, 0x40, 0x80

MSR_DCTS, MSR_DDSR, MSR_TERI, MSR_DDCD = 0x01, 0x02, 0x04, 0x08
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
